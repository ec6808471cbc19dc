"""The data folder: made, claimed by one server at a time, and laid out so that PostgreSQL's account can reach it.

PostgreSQL refuses to run as root. When we are root it runs as another account, for which every folder on the way
must be passable; where that cannot be (data below /root, say) the cluster is put into /var/lib/elwift and the data
folder holds a link to it. Imports nothing of ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
from pathlib import Path

from attrs import define, field, frozen

SOCKET_PATH_LIMIT = 90
"""Bytes of a socket's folder: the kernel takes 107 for the whole path, and PostgreSQL adds its file's name."""

OUTSIDE = Path("/var/lib/elwift")


class FolderError(Exception):
    """The data folder cannot be used; the message says why and what to do."""


class FolderInUse(FolderError):
    """Another server holds this data folder."""


@frozen
class Account:
    """Whom PostgreSQL runs as."""

    uid: int
    gid: int
    name: str


@define(eq=False)
class DataFolder:
    """A server's data folder. `claim` before use; the claim ends with the process, however it ends."""

    path: Path
    _lock: int | None = field(default=None, alias="_lock")

    def claim(self) -> None:
        """Makes the folder and takes it for this process alone. Idempotent. Raises FolderError, FolderInUse."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o711)
            lock = os.open(self.path / "elwift.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            raise FolderError(
                f"The data folder {self.path} is not writable ({problem.strerror}). Choose another with --data-dir."
            ) from problem
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise FolderInUse(
                f"Another Elwift server (process {holder or 'unknown'}) uses the data folder {self.path}. "
                "Stop it, or choose another folder with --data-dir."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def release(self) -> None:
        """Gives the folder back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@frozen
class Layout:
    """Where the cluster's parts are, and whom they belong to (None: us)."""

    cluster: Path
    sockets: Path
    binaries: Path
    account: Account | None


def lay_out(data_dir: Path) -> Layout:
    """Finds a home for the cluster below `data_dir`, or outside when PostgreSQL's account cannot reach that."""
    data_dir = data_dir.resolve()
    if os.geteuid() != 0:
        return _layout(data_dir, data_dir, None)
    account = owner(data_dir / "postgres") or unprivileged()
    home = data_dir if passable(data_dir, account) else OUTSIDE / _digest(data_dir)
    return _layout(data_dir, home, account)


def _layout(data_dir: Path, home: Path, account: Account | None) -> Layout:
    sockets = home / "run"
    if len(os.fsencode(sockets)) > SOCKET_PATH_LIMIT:
        sockets = Path("/tmp") / f"elwift-{os.geteuid()}-{_digest(data_dir)}"
    return Layout(home / "postgres", sockets, home / "postgres-binaries", account)


def make_home(data_dir: Path, layout: Layout) -> None:
    """Makes the folder that holds the cluster, and the link to it when it is outside the data folder."""
    home = layout.cluster.parent
    home.mkdir(parents=True, exist_ok=True, mode=0o711)
    link = data_dir.resolve() / "postgres"
    if link != layout.cluster and not link.is_symlink():
        link.symlink_to(layout.cluster)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def make_private(path: Path, account: Account | None) -> None:
    """Makes a folder that only `account` can enter."""
    path.mkdir(exist_ok=True, mode=0o700, parents=True)
    if account:
        os.chown(path, account.uid, account.gid)
    found = path.lstat()
    if found.st_uid != (account.uid if account else os.geteuid()):
        raise FolderError(f"{path} belongs to another user (uid {found.st_uid}); remove it.")
    path.chmod(0o700)


def owner(path: Path) -> Account | None:
    """Who owns an existing cluster: it stays theirs, whichever account a new one would be given."""
    try:
        uid = path.stat().st_uid
        entry = pwd.getpwuid(uid)
    except (OSError, KeyError):
        return None
    return Account(uid, entry.pw_gid, entry.pw_name) if uid else None


def unprivileged() -> Account:
    """The account for PostgreSQL when we are root: `postgres` when the machine has one, else `nobody`."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name)
    return Account(65534, 65534, "65534")


def passable(path: Path, account: Account) -> bool:
    """Whether `account` can pass through `path` and every folder above it."""
    return all(_enters(folder, account) for folder in (path, *path.parents))


def _enters(folder: Path, account: Account) -> bool:
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True  # to be made, or to fail when it is
    if found.st_uid == account.uid:
        return bool(found.st_mode & 0o100)
    if found.st_gid == account.gid:
        return bool(found.st_mode & 0o010)
    return bool(found.st_mode & 0o001)
