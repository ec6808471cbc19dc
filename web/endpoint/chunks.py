"""A body in chunks, taken apart as it comes (RFC 9112 7.1). Pure; imports `head` for its refusal.

Extensions are skipped and trailers thrown away, both within bounds; a bare line feed ends nothing.
"""

from __future__ import annotations

import re

from web.endpoint.head import Malformed

LONGEST_LINE = 256
"""Bytes of a chunk's size with its extensions."""
FEW_CHUNKS = 256
SMALL_CHUNK = 64
"""Bytes: a body may come in a few chunks of any size, and in many if they are this large on average. Each costs us
a microsecond or two, and its sender six bytes."""
MOST_TRAILERS = 8 * 1024
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?")
_TRAILER = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]++):[\t\x20-\x7e\x80-\xff]*+")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
"""What a trailer may not be (RFC 9110 6.5.1): whoever merges it with the headers would read another request."""


class Chunks:
    """Fed with what comes, it gives the body's bytes. `done` once the last chunk is over; `rest` came behind it."""

    __slots__ = ("_awaits_end", "_got", "_left", "_parts", "_trailers", "done", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self.done = False
        self._parts = self._got = 0
        self._left = 0  # of the chunk at hand
        self._awaits_end = False  # of a chunk that is whole, its line end
        self._trailers: int | None = None  # their bytes so far, once the last chunk has come

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`. Raises Malformed."""
        data, at = self.rest + data, 0
        found: list[bytes] = []
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                found.append(piece)
                at += len(piece)
                self._on_piece(len(piece))
                if self._left:
                    break
            end = data.find(b"\r\n", at)
            if self._awaits_end and not b"\r\n".startswith(data[at : at + 2]):
                raise Malformed(400, "bad_request", "a chunk that is longer than it says")
            self._within(len(data) - at if end < 0 else end - at)
            if end < 0:
                break
            self._on_line(data[at:end])
            at = end + 2
        self.rest = data[at:]
        return b"".join(found)

    def _on_piece(self, size: int) -> None:
        self._left -= size
        self._got += size
        self._awaits_end = not self._left

    def _within(self, line: int) -> None:
        if line > (MOST_TRAILERS if self._trailers is not None else LONGEST_LINE):
            raise Malformed(400, "bad_request", "a chunk's line that is too long")

    def _on_line(self, line: bytes) -> None:
        if self._trailers is not None:
            self._on_trailer(line)
        elif self._awaits_end:
            self._awaits_end = False
        else:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise Malformed(400, "bad_request", "a chunk without a size")
            self._left = int(size[1], 16)
            self._parts += 1
            if self._parts > FEW_CHUNKS + self._got // SMALL_CHUNK:
                raise Malformed(400, "bad_request", "a body in very many, very small chunks")
            if not self._left:
                self._trailers = 0

    def _on_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        assert self._trailers is not None
        self._trailers += len(line) + 2
        trailer = _TRAILER.fullmatch(line)
        if self._trailers > MOST_TRAILERS or trailer is None or trailer[1].lower() in _FRAMING:
            raise Malformed(400, "bad_request", "trailers that are none, or too many")
