"""The pages' files, read once: bytes, type, a compressed twin, and one version for all of them.

The version is a hash over every file. Pages name their files under `/static/<version>/`, where they may be cached for
ever; the pages themselves are revalidated. Pure after reading; imports nothing of ours.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from attrs import frozen

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@frozen
class File:
    """One file, ready to be sent."""

    content_type: str
    body: bytes
    compressed: bytes
    etag: str


@frozen
class Site:
    """All files by name; `version` changes when any of them does."""

    version: str
    files: Mapping[str, File]


def load() -> Site:
    """Reads the package's static files."""
    raw = {
        entry.name: entry.read_bytes()
        for entry in sorted(files("web.pages").joinpath("static").iterdir(), key=lambda entry: entry.name)
        if entry.name.rpartition(".")[2] in _TYPES
    }
    version = sha256(b"".join(name.encode() + b"\0" + body for name, body in raw.items())).hexdigest()[:12]
    return Site(version, {name: _file(name, body, version) for name, body in raw.items()})


def _file(name: str, body: bytes, version: str) -> File:
    if name.endswith(".html"):
        body = body.replace(b"{{static}}", f"/static/{version}".encode())
    return made(body, _TYPES[name.rpartition(".")[2]])


def made(body: bytes, content_type: str) -> File:
    """A file of these bytes."""
    return File(content_type, body, gzip.compress(body, 9, mtime=0), f'"{sha256(body).hexdigest()[:16]}"')
