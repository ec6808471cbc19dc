"""Stands between us and a Cog server of ours, so that it never outlives us: its parent, in a session of their own.

Run as `python cog_server_main.py COMMAND…`. It ends what it started, and all that this started, when its standard input
(a pipe from the server) is at its end: when it is told to, and when the server was killed. When it is killed itself,
the kernel kills the Cog server, and whoever started us the rest of the session. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

GRACE = 2.0
"""Seconds between asking the processes to end and ending them."""
PLACE = Path("/tmp/coglet")
"""Where Cog keeps the files of predictions, for everybody on the machine: nothing tells it of another place."""
NEW_USERS, NEW_MOUNTS = 0x10000000, 0x00020000
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DIE_WITH_PARENT = 1


def main() -> None:
    """Runs the command; its exit status is ours."""
    os.umask(0o077)  # what predictions leave in the place of everybody is for us alone
    settle()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we ask our whole session to end, and are in it
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=begin)
    threading.Thread(target=end_with_standard_input, args=(child,), daemon=True).start()
    status = child.wait()
    kill_session(status)


def begin() -> None:
    """In the child, before it becomes the Cog server."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def settle() -> None:
    """Sees to it that Cog can use its place: shares it when it is new, hides another user's behind one of our own."""
    with contextlib.suppress(FileExistsError):
        PLACE.mkdir()
        PLACE.chmod(0o1777)
    with contextlib.suppress(OSError):
        (PLACE / "predictions").mkdir()
        (PLACE / "predictions").chmod(0o1777)
    if not usable():
        try:
            hide()
        except OSError as problem:
            say(f"{PLACE} belongs to another user, and hiding it is not allowed here: {problem.strerror}")


def usable() -> bool:
    """Whether we may write there, and nobody but us and root can take away what we wrote."""
    for folder in (PLACE, PLACE / "predictions"):
        try:
            found = folder.lstat()
        except OSError:
            return False
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or not os.access(folder, os.W_OK):
            return False
    return True


def hide() -> None:
    """From here on, for us and our children alone, an empty folder of our own lies over the place. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    own = tempfile.mkdtemp(prefix="elwift-coglet-")
    checked(libc.unshare(NEW_USERS | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    checked(libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None))
    checked(libc.mount(own.encode(), bytes(PLACE), None, BIND, None))


def checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def end_with_standard_input(child: subprocess.Popen[bytes]) -> None:
    """Nothing is ever written to us: a read returns when the pipe was closed."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    kill_session(0)


def kill_session(status: int) -> None:
    """Ends whatever is left of the session; the last of it is this process, which then has no status of its own."""
    say(f"the Cog server ended with status {status}")
    os.killpg(0, signal.SIGKILL)


def say(words: str) -> None:
    sys.stderr.write(f"elwift: {words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
