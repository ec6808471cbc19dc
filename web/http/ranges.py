"""Which part of a file a request asks for: ranges and conditions of RFC 9110, as pure functions.

One range is served; a request for several gets the whole file, as is allowed (14.2), so that nobody makes us multiply
the work of one request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


@frozen
class Part:
    """Bytes `start` to before `stop` of `size`; the whole file is not `partial`."""

    start: int
    stop: int
    size: int
    partial: bool = False

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def wanted(headers: Mapping[str, str], size: int, etag: str) -> Part | None:
    """The part that is asked for, the whole file where nothing else is; None: there is no such part (416).

    `headers` in lower case. A range that hangs on another version of the file (If-Range) is void, as is one that cannot
    be read.
    """
    whole = Part(0, size, size)
    match = RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or headers.get("if-range", etag) != etag:
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        return Part(max(0, size - int(suffix)), size, size, partial=True) if int(suffix) and size else None
    start, stop = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return whole
    return Part(start, stop, size, partial=True) if start < size else None


def unchanged(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the client has this version already (If-None-Match, by weak comparison)."""
    named = headers.get("if-none-match", "")
    return named.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in named.split(",")]


def failed(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the client wants another version or none (If-Match)."""
    named = headers.get("if-match")
    return named is not None and named.strip() != "*" and etag not in [each.strip() for each in named.split(",")]
