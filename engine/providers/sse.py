"""Server-sent events, taken apart as the bytes arrive.

Pure; imports nothing of ours. Fields that our providers do not use (`id`, `retry`) are read over.
Source: the HTML standard, 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import define, field, frozen

MAX_EVENT_BYTES = 4_000_000
"""No provider sends as much in one event; a peer that does is broken, and must not fill the memory."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLarge(Exception):
    """More than MAX_EVENT_BYTES arrived without an event's end."""


@frozen
class ServerSentEvent:
    """One event: its name (`message` when none is given) and its data, lines joined by newlines."""

    event: str
    data: str


@define
class Decoder:
    """Takes chunks as they come off the wire; gives back the events that are complete. One per response."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[bytes] = field(factory=list)
    _size: int = 0
    _started: bool = False

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that `chunk` completes.

        Raises:
            EventTooLarge: an event does not end.
        """
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                yield event
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        buffer = self._rest + chunk
        if not self._started and len(buffer) >= 3:
            self._started = True
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
        start = 0
        for end in _LINE_END.finditer(buffer):
            if end.end() == len(buffer) and end.group() == b"\r":
                break  # its newline may come with the next chunk
            yield buffer[start : end.start()]
            start = end.end()
        self._rest = buffer[start:]

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self) -> ServerSentEvent | None:
        name, data = self._name or "message", self._data
        self._name, self._data, self._size = "", [], 0
        return ServerSentEvent(name, b"\n".join(data).decode("utf-8", "replace")) if data else None
