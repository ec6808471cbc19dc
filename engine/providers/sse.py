"""Server-sent events, taken apart as the bytes arrive.

Pure; imports nothing of ours. Fields that our providers do not use (`id`, `retry`) are read over.
Source: the HTML standard, 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

MAX_EVENT_BYTES = 4_000_000
"""No provider sends as much in one event; a peer that does is broken, and must not fill the memory."""

_MARK = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """More than MAX_EVENT_BYTES arrived without an event's end."""


class ServerSentEvent(Struct, frozen=True, gc=False):
    """One event: its name (`message` when none is given) and its data in UTF-8, lines joined by newlines."""

    event: str
    data: bytes


class Decoder:
    """Takes chunks as they come off the wire; gives back the events that are complete. One per response."""

    __slots__ = ("_data", "_name", "_rest", "_size", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._name = "message"
        self._data: list[bytes] = []
        self._size = 0
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that `chunk` completes.

        Raises:
            EventTooLarge: an event does not end.
        """
        for line in self._lines(chunk):
            if line.startswith(b"data: "):
                self._add(line[6:])
            elif line:
                self._field(line)
            elif self._data:
                yield self._dispatched()
            else:
                self._name = "message"
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` ends; what follows the last of them waits for more."""
        buffer = self._rest + chunk if self._rest else chunk
        if not self._started:
            if len(buffer) < len(_MARK) and _MARK.startswith(buffer):
                self._rest = buffer
                return []
            self._started = True
            buffer = buffer.removeprefix(_MARK)
        lines = buffer.splitlines(keepends=buffer.endswith(b"\r"))
        if buffer.endswith(b"\n") or not lines:
            self._rest = b""
        else:  # a newline may come after the carriage return, and belongs to it
            self._rest = lines.pop()
            lines = [line.rstrip(b"\r\n") for line in lines] if self._rest.endswith(b"\r") else lines
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace") or "message"

    def _add(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value)

    def _dispatched(self) -> ServerSentEvent:
        data = self._data
        event = ServerSentEvent(self._name, data[0] if len(data) == 1 else b"\n".join(data))
        self._name, self._data, self._size = "message", [], 0
        return event
