"""A WebSocket on our own data path: the transport of a Socket process, over a wire taken over from HTTP.

Nothing here waits. The hub calls `read` and `flush` when the kernel is ready; everybody else calls the methods of
`Transport`. Frames gather in the outbox and leave in one write at the end of the loop's turn. The protocol itself
(RFC 6455: parsing, masking, control frames) is `websockets`' sans-IO one. May import this package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import IntEnum
from selectors import EVENT_READ
from typing import TYPE_CHECKING

import attrs
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER
from websockets.protocol import Protocol as WebSocket

from web.endpoint.wire import Wire
from web.sockets.transport import Accept, CloseCode, Closed, News, Received, Upgrade, Writable

if TYPE_CHECKING:
    from web.endpoint.hub import Hub

READ = 8 * 1024
"""Bytes read at once: a thousand of the smallest frames, a few milliseconds' work, before others get their turn."""
READ_TLS = 16 * 1024
"""Not less than a TLS record, so that nothing is left behind inside OpenSSL, where no selector sees it."""
BATCH = 64 * 1024
"""Bytes written at once."""
ABNORMAL = 1006
LONGEST_REASON = 123

_quiet = logging.getLogger("elwift.endpoint.websockets")
_quiet.setLevel(logging.CRITICAL)  # faults are logged by us, once


class Stage(IntEnum):
    """OPEN → CLOSING (our close frame is out) → ENDING (both are, or the client broke a rule) → GONE."""

    OPEN, CLOSING, ENDING, GONE = range(4)


class StreamTransport:
    """See `web.sockets.transport.Transport`. Made before the handshake's answer: `head`, its bytes, leave first, and
    nothing leaves before `begin`."""

    __slots__ = (
        "_blocked",
        "_busy",
        "_deliver",
        "_dirty",
        "_held",
        "_hub",
        "_offset",
        "_outbox",
        "_partial",
        "_partial_text",
        "_queued",
        "_stage",
        "_strained",
        "_wire",
        "_ws",
        "accept",
        "deadline",
        "heard_at",
        "interest",
        "upgrade",
    )

    def __init__(
        self, hub: Hub, wire: Wire, upgrade: Upgrade, accept: Accept, head: bytes, extensions: list[Extension]
    ) -> None:
        self.upgrade = upgrade
        self.accept = accept
        self.heard_at = hub.now()
        self.deadline: float | None = None
        self.interest = 0
        self._hub = hub
        self._wire = wire
        self._ws = WebSocket(SERVER, max_size=hub.settings.max_message or None, logger=_quiet)
        self._ws.extensions = extensions
        self._stage = Stage.OPEN
        self._outbox: list[bytes] = [head]
        self._queued = len(head)
        self._offset = 0  # how much of the first of them has been sent
        self._dirty = True  # until `begin`, nothing asks for a flush
        self._blocked = False  # whether the kernel takes no more for now
        self._strained = False  # whether the owner is owed a Writable
        self._busy = False  # whether the owner has a Received that it has not answered with resume()
        self._partial: bytearray | None = None
        self._partial_text = False
        self._held = 0  # bytes of a message that is still on its way, as the hub's budget knows it
        self._deliver: Callable[[News], None] | None = None

    # --- Transport -----------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        return self._strained

    @property
    def closed(self) -> bool:
        return self._stage is not Stage.OPEN

    def send_text(self, utf8: bytes) -> None:
        if self._stage is Stage.OPEN:
            self._send(Opcode.TEXT, utf8)

    def send_binary(self, data: bytes) -> None:
        if self._stage is Stage.OPEN:
            self._send(Opcode.BINARY, data)

    def resume(self) -> None:
        self._busy = False
        if not self.interest & EVENT_READ:
            self._hub.watch(self)

    def close(self, code: int, reason: str = "") -> None:
        if self._stage is not Stage.OPEN:
            return
        self._stage = Stage.CLOSING
        self.deadline = self._hub.now() + self._hub.settings.close_timeout
        reason = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        self._ws.send_close(code, reason)
        self._send_answers()
        self._forget()
        self._hub.watch(self)
        self._tell(Closed(code, reason))

    # --- the owner -----------------------------------------------------------------------------------

    def begin(self, deliver: Callable[[News], None], early: bytes = b"") -> None:
        """Lets go of what waits to be sent, and begins to read. `early`: bytes that came with the handshake."""
        self._deliver = deliver
        self.upgrade = attrs.evolve(self.upgrade, headers=())  # read at the start, if ever; a kilobyte a client
        self._hub.enter(self)
        self.flush()
        if self._ws.close_sent is not None:  # by the owner's init
            self._tell(Closed(self._ws.close_sent.code, self._ws.close_sent.reason))
        elif early:
            self._take(early)

    @property
    def _begun(self) -> bool:
        return self._deliver is not None

    def owner_ended(self) -> None:
        """The owner is no more; if it said nothing to the client, it crashed."""
        self.close(CloseCode.CRASHED)

    def _tell(self, news: News) -> None:
        deliver = self._deliver
        if deliver is not None:
            if isinstance(news, Closed):
                self._deliver = None
            deliver(news)

    # --- out -----------------------------------------------------------------------------------------

    def _send(self, opcode: Opcode, payload: bytes) -> None:
        if self._ws.extensions:
            self._put(Frame(opcode, payload).serialize(mask=False, extensions=self._ws.extensions))
        else:
            self._put(frame_head(opcode, len(payload)) + payload)
        if self._queued <= self._hub.settings.high_water or self._strained or not self._begun:
            return
        self.flush()  # more than a turn's worth: try now, to know whether it is the client that is slow
        self._strained = self._queued > self._hub.settings.high_water

    def _put(self, chunk: bytes) -> None:
        self._outbox.append(chunk)
        self._queued += len(chunk)
        if not self._dirty:
            self._dirty = True
            self._hub.soon(self)
        limit = self._hub.settings.max_outbox
        if limit and self._queued > limit and self._stage is Stage.OPEN:
            self._overflow()

    def _overflow(self) -> None:
        """Whole frames are given up, but neither the handshake's answer nor the rest of a frame that has begun: the
        close frame must be understood."""
        answer = self._outbox[0][0] < 0x80  # every frame has its highest bit set (FIN), and a line of HTTP has not
        kept = self._outbox[:1] if self._offset or answer else []
        self._outbox, self._queued = kept, sum(map(len, kept)) - self._offset
        self._hub.faults.client("slow_client", self.upgrade.client, "its outbox was full")
        self.close(CloseCode.TRY_LATER, "too slow")

    def flush(self) -> None:
        """Writes as much as the kernel takes now."""
        if self._stage is Stage.GONE:
            return
        self._dirty = False
        was_blocked = self._blocked
        try:
            self._blocked = not self._write()
        except OSError:
            self._lost()
            return
        if self._blocked is not was_blocked:
            self._hub.watch(self)
        if self._strained or self._stage is Stage.ENDING:
            self._after_flush()

    def _write(self) -> bool:
        """Whether everything has been written."""
        while self._outbox:
            data = self._batch()
            sent = self._wire.send(data)
            if sent == self._queued:  # all there was, as nearly always
                self._outbox.clear()
                self._queued = self._offset = 0
                return True
            self._drop(sent)
            if sent < len(data):
                return False
        return True

    def _batch(self) -> bytes | memoryview:
        if len(self._outbox) == 1 and not self._offset:
            return self._outbox[0]
        size, count = 0, 0
        while count < len(self._outbox) and size < BATCH + self._offset:
            size += len(self._outbox[count])
            count += 1
        return memoryview(b"".join(self._outbox[:count]))[self._offset :]

    def _drop(self, sent: int) -> None:
        self._queued -= sent
        sent += self._offset
        count = 0
        while count < len(self._outbox) and sent >= len(self._outbox[count]):
            sent -= len(self._outbox[count])
            count += 1
        del self._outbox[:count]
        self._offset = sent

    def _after_flush(self) -> None:
        if self._strained and self._queued <= self._hub.settings.high_water // 2:
            self._strained = False
            if self._stage is Stage.OPEN:
                self._tell(Writable())
        if self._stage is Stage.ENDING and not self._outbox:
            self._wire.end()

    @property
    def wants_write(self) -> bool:
        return self._blocked

    # --- in ------------------------------------------------------------------------------------------

    @property
    def wants_read(self) -> bool:
        return not (self._busy and self._stage is Stage.OPEN)

    def read(self) -> None:
        """Reads what has arrived; the hub calls it when something has."""
        if not self.wants_read:
            self._hub.watch(self)
            return
        try:
            data = self._wire.recv(READ_TLS if self._wire.secured else READ)
        except OSError:
            self._lost()
            return
        if data is None:
            return
        if self._stage is Stage.ENDING:
            if not data:
                self.abort()
            return  # thrown away, so that the client can read what we said last
        self._take(data)

    def _take(self, data: bytes) -> None:
        self.heard_at = self._hub.now()
        if data:
            self._ws.receive_data(data)
        else:
            self._ws.receive_eof()
        events = self._ws.events_received()
        frames = self._messages(events) if self._stage is Stage.OPEN else ()
        self._send_answers()
        if frames and self._stage is Stage.OPEN:
            self._busy = True
            self._tell(Received(frames))
        if self._ws.eof_sent:
            self._end()
        elif self._stage is Stage.OPEN and not self._hold(self._unfinished()):
            self._hub.faults.client("too_much_buffered", self.upgrade.client, "all clients together sent too much")
            self.close(CloseCode.TRY_LATER, "too much at once")

    def _unfinished(self) -> int:
        return len(self._ws.reader.buffer) + (0 if self._partial is None else len(self._partial))

    def _hold(self, size: int) -> bool:
        """Keeps the hub's budget; false when this client brings it over the limit."""
        more, self._held = size - self._held, size
        return not more or self._hub.budget.change(more) or more < 0

    def _messages(self, events: Iterable[object]) -> tuple[str | bytes, ...]:
        """The whole messages among these frames; a fragmented one is kept until its last fragment."""
        found: list[str | bytes] = []
        try:
            for frame in events:
                if isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    self._assemble(frame, found)
        except UnicodeDecodeError as error:
            self._ws.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
        return tuple(found)

    def _assemble(self, frame: Frame, found: list[str | bytes]) -> None:
        if frame.opcode is not Opcode.CONT and frame.fin:
            found.append(str(frame.data, "utf-8") if frame.opcode is Opcode.TEXT else bytes(frame.data))
            return
        if self._partial is None:
            self._partial, self._partial_text = bytearray(), frame.opcode is Opcode.TEXT
        self._partial += frame.data
        if frame.fin:
            whole, self._partial = self._partial, None
            found.append(str(whole, "utf-8") if self._partial_text else bytes(whole))

    def _send_answers(self) -> None:
        for chunk in self._ws.data_to_send():
            if chunk:
                self._put(chunk)

    # --- the end -------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Both sides have said so, or the client broke a rule or the connection: what is left is sent, then silence."""
        if self._stage >= Stage.ENDING:
            return
        self._stage = Stage.ENDING
        self.deadline = self._hub.now() + self._hub.settings.close_timeout
        self._forget()
        sent, received = self._ws.close_sent, self._ws.close_rcvd
        if received is None and sent is not None and self._deliver is not None:
            self._hub.faults.client("websocket_error", self.upgrade.client, f"closed with {int(sent.code)}")
        known = received or sent
        self._tell(Closed(known.code, known.reason) if known else Closed(ABNORMAL))
        if known is None:
            self.abort()
        elif not self._outbox:
            self._wire.end()

    def _lost(self) -> None:
        self._tell(Closed(ABNORMAL))
        self.abort()

    def abort(self) -> None:
        if self._stage is Stage.GONE:
            return
        self._stage = Stage.GONE
        self._outbox.clear()
        self._queued = 0
        self._forget()
        self._hub.leave(self)
        self._wire.close()
        self._tell(Closed(ABNORMAL))

    def _forget(self) -> None:
        self._partial = None
        self._hold(0)

    def fileno(self) -> int:
        return self._wire.fileno()


def frame_head(opcode: int, length: int) -> bytes:
    """The head of an unmasked frame that is a whole message (RFC 6455 5.2)."""
    first = 0x80 | opcode
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")
