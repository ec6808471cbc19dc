"""Stands between us and a Cog server of ours, so that it never outlives us: its parent, in a session of their own.

Run as `python cog_server_main.py COMMAND…`. It ends what it started, and all that this started, when its standard input
(a pipe from the server) is at its end: when it is told to, and when the server was killed. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE = 2.0
"""Seconds between asking the processes to end and ending them."""


def main() -> None:
    """Runs the command; its exit status is ours."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we ask our whole session to end, and are in it
    child = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    )
    threading.Thread(target=end_with_standard_input, args=(child,), daemon=True).start()
    status = child.wait()
    kill_session(status)


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
    sys.stderr.write(f"the Cog server ended with status {status}\n")
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
