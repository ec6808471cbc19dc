"""What a file is, told from its bytes: never from its name or from what its sender called it.

Images are measured here (Pillow reads the header alone). Audio and video go to `probe`, in a process of its own: a
parser of hostile bytes written in C must not be able to take the server along. Reads files; blocking: run in a thread.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import filetype
from attrs import frozen
from PIL import Image, UnidentifiedImageError

HEAD = 8192
TEXT_MARKS = (b"<?xml", b"<svg", b"<html", b"<!doctype", b"<script")
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
    """Adds the dimensions of an image, from its header; a broken header leaves them out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return found
    return Description(found.type, found.format, found.content_type, {"width": width, "height": height})


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
