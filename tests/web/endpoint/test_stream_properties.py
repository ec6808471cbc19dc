"""However a client cuts its messages, and however little the kernel takes at a time, every byte is in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from web.endpoint.faults import FaultLog
from web.endpoint.limits import Budget
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import StreamTransport
from web.sockets.transport import Accept, Closed, Received, Upgrade

HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
messages = st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300)), min_size=1, max_size=8)


@define(eq=False)
class ByHand:
    """In place of the hub: nothing happens until the test says so."""

    settings: EndpointSettings = field(factory=lambda: EndpointSettings(high_water=500, max_outbox=0))
    budget: Budget = field(factory=Budget)
    faults: FaultLog = field(factory=lambda: FaultLog(lambda: 0.0))
    left: bool = False

    def now(self) -> float:
        return 0.0

    def enter(self, transport: Any) -> None: ...

    def watch(self, transport: Any) -> None: ...

    def soon(self, transport: Any) -> None: ...

    def leave(self, transport: Any) -> None:
        self.left = True


@define(eq=False)
class NarrowWire:
    """Takes as many bytes at each write as its list says, then none; gives what it was given to read."""

    takes: Iterator[int]
    sent: bytearray = field(factory=bytearray)
    arrived: list[bytes] = field(factory=list)
    secured: bool = False

    def send(self, data: Any) -> int:
        size = min(next(self.takes, 1 << 30), len(data))
        self.sent += bytes(data[:size])
        return size

    def recv(self, limit: int) -> bytes | None:
        return self.arrived.pop(0) if self.arrived else None

    def end(self) -> None: ...

    def close(self) -> None: ...


def transport_over(wire: NarrowWire) -> tuple[StreamTransport, list[object]]:
    news: list[object] = []
    accept = Accept(start=None)  # type: ignore[arg-type]  # nobody is started here
    made = StreamTransport(ByHand(), wire, Upgrade("/", "", (), "test"), accept, HEAD, [])  # type: ignore[arg-type]
    made.begin(news.append)
    return made, news


def frames_of(message: str | bytes, cuts: list[int]) -> bytes:
    """The message in fragments, with a ping between each two."""
    data = message.encode() if isinstance(message, str) else message
    edges = sorted({min(cut, len(data)) for cut in cuts} - {0, len(data)})
    parts = [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]
    first = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
    ping = Frame(Opcode.PING, b"?").serialize(mask=True)
    return ping.join(
        Frame(first if n == 0 else Opcode.CONT, part, fin=n == len(parts) - 1).serialize(mask=True)
        for n, part in enumerate(parts)
    )


@settings(deadline=None)
@given(messages, st.lists(st.integers(1, 300), max_size=5), st.lists(st.integers(1, 40), max_size=60))
def test_messages_arrive_whole_however_they_are_cut(
    said: list[str | bytes], cuts: list[int], chunks: list[int]
) -> None:
    wire = NarrowWire(iter(()))
    transport, news = transport_over(wire)
    stream = b"".join(frames_of(message, cuts) for message in said)
    for size in [*chunks, len(stream)]:
        if stream:
            wire.arrived.append(stream[:size])
            stream = stream[size:]
            transport.read()
            transport.resume()
    heard = [frame for item in news if isinstance(item, Received) for frame in item.frames]
    assert heard == said
    assert transport._held == 0


@settings(deadline=None)
@given(messages, st.lists(st.integers(0, 50), max_size=80))
def test_what_is_sent_arrives_in_order_however_little_the_kernel_takes(
    said: list[str | bytes], takes: list[int]
) -> None:
    wire = NarrowWire(iter(takes))
    transport, _ = transport_over(wire)
    for message in said:
        if isinstance(message, str):
            transport.send_text(message.encode())
        else:
            transport.send_binary(message)
        transport.flush()
    transport.close(1012, "restart")
    for _ in range(len(takes) + 1):
        transport.flush()
    assert heard_by_a_client(wire) == (said, 1012)
    assert transport._queued == 0


@settings(deadline=None)
@given(messages, st.lists(st.integers(0, 50), max_size=20), st.integers(0, 400))
def test_a_client_that_is_given_up_can_still_read_why(said: list[str | bytes], takes: list[int], limit: int) -> None:
    """Frames are dropped whole: whatever it gets is a beginning of what was said, then the close frame."""
    wire = NarrowWire(iter([*takes, *[0] * len(said) * 2]))
    transport, news = transport_over(wire)
    transport._hub.settings = EndpointSettings(high_water=100, max_outbox=limit or 1)
    for message in said:
        transport.send_binary(message if isinstance(message, bytes) else message.encode())
        transport.flush()
    if not transport.closed:
        transport.close(1013)
    for _ in range(len(takes) + 2 * len(said) + 1):
        transport.flush()
    heard, code = heard_by_a_client(wire)
    spoken = [message if isinstance(message, bytes) else message.encode() for message in said]
    assert heard == spoken[: len(heard)]
    assert code == 1013
    assert next(item for item in news if isinstance(item, Closed)).code == 1013


def heard_by_a_client(wire: NarrowWire) -> tuple[list[str | bytes], int]:
    assert wire.sent.startswith(HEAD)
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(bytes(wire.sent.removeprefix(HEAD)))
    found: list[str | bytes] = []
    for frame in client.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode is Opcode.TEXT:
            found.append(bytes(frame.data).decode())
        elif frame.opcode is Opcode.BINARY:
            found.append(bytes(frame.data))
    assert client.close_rcvd is not None
    return found, int(client.close_rcvd.code)
