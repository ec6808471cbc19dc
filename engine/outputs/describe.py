"""What a file is, told from its bytes: never from its name or from what its sender called it.

Images are measured from their headers, by a reader that gives up after a bounded amount of bytes: nothing is ever
unpacked. Audio and video go to `probe`, in a process of its own: a parser of hostile bytes written in C must not be
able to take the server along. Reads files; blocking: run in a thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import filetype
import imagesize
from attrs import frozen

HEAD = 8192
MOST_READ = 1024 * 1024
MOST_READS = 20_000
"""Bytes and reads within which a picture must have told its size: a thread cannot be stopped, but it can starve."""
LARGEST_SIDE = 1 << 31
TEXT_MARKS = (b"<?xml", b"<svg", b"<html", b"<!doctype", b"<script", b"<!--")
INLINE = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/apng", "image/bmp"}
    | {"audio/mpeg", "audio/mp4", "audio/ogg", "audio/x-wav", "audio/x-flac", "audio/aac"}
    | {"video/mp4", "video/webm", "video/quicktime", "text/plain"}
)
"""What a browser may show in place. Anything else is offered as a download: SVG and HTML can hold script."""


@frozen
class Description:
    """`type` is image, video, audio, text or file; `format` the usual extension; duration in seconds."""

    type: str
    format: str
    content_type: str
    dimensions: dict[str, int] | None = None
    duration_seconds: float | None = None

    @property
    def inline(self) -> bool:
        return self.content_type in INLINE


def sniff(head: bytes) -> Description:
    """What the first bytes (8 KB are enough) say."""
    kind = filetype.guess(head)
    if kind is not None:
        family = kind.mime.partition("/")[0]
        return Description(family if family in ("image", "video", "audio") else "file", kind.extension, kind.mime)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(TEXT_MARKS):
        return _markup(start)
    if _is_text(head):
        return Description("text", "txt", "text/plain")
    return Description("file", "bin", "application/octet-stream")


def measure_image(path: Path, found: Description) -> Description:
    """Adds the dimensions that an image claims, in pixels as stored; a broken header leaves them out."""
    try:
        with path.open("rb") as file:
            width, height = imagesize.get(_Scant(file), exif_rotation=False)
    except Exception:  # noqa: BLE001 - whatever hostile bytes do to the reader, the file stays without dimensions
        return found
    if not (0 < width < LARGEST_SIDE and 0 < height < LARGEST_SIDE):
        return found
    return Description(found.type, found.format, found.content_type, {"width": int(width), "height": int(height)})


class _Scant:
    """A file of which only so much can be read; then it seems to be over."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = MOST_READ
        self._reads = MOST_READS
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if self._reads <= 0 or self._bytes <= 0:
            return b""
        self._reads -= 1
        data = self._file.read(self._bytes if size < 0 else min(size, self._bytes))
        self._bytes -= len(data)
        return data

    def fileno(self) -> int:
        raise OSError("this is no whole file")

    def seekable(self) -> bool:
        return True


def _markup(start: bytes) -> Description:
    if b"<svg" in start:
        return Description("image", "svg", "image/svg+xml")
    if b"<html" in start or b"<!doctype html" in start or b"<script" in start:
        return Description("file", "html", "text/html")
    return Description("file", "xml", "application/xml")


def _is_text(head: bytes) -> bool:
    if not head or b"\x00" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as problem:
        # a character cut by the end of the head is no fault
        return problem.start >= len(head) - 3 and problem.reason == "unexpected end of data"
    return True


def head_of(path: Path) -> bytes:
    """As much of a file as `sniff` wants."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, HEAD)
    finally:
        os.close(handle)
