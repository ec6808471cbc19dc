"""Streams of requests, broken in every way that smugglers know: where one ends, it ends for another reader, too."""

from __future__ import annotations

import random
from typing import Any, cast

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from web.endpoint.head import Head
from web.endpoint.http1 import Exchange, Http1
from web.endpoint.limits import Budget
from web.endpoint.settings import EndpointSettings
from web.endpoint.wire import Wire

Read = tuple[str, bytes, bytes]
"""Method, target and body."""

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"


def post(*lines: bytes, body: bytes = HIDDEN) -> bytes:
    return b"\r\n".join([b"POST /d HTTP/1.1", b"Host: x", *lines, b"", b""]) + body


CLASSICS = (
    post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=b"0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: xchunked"),
    post(b"Transfer-Encoding : chunked", b"Content-Length: 0"),
    post(b"Transfer-Encoding:\tchunked", body=b"0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n" + HIDDEN),
    post(b" Transfer-Encoding: chunked", b"Content-Length: 0"),
    post(b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 0"),
    post(b"Transfer-Encoding\n: chunked", b"Content-Length: 0"),
    post(b"Transfer-Encoding: chunked\x0b", b"Content-Length: 0"),
    post(b"Transfer-Encoding: \"chunked\"", b"Content-Length: 0"),
    post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    post(b"Content-Length: 0", b"Content-Length: %d" % len(HIDDEN)),
    post(b"Content-Length: 0, %d" % len(HIDDEN)),
    post(b"Content-Length: 0%d" % len(HIDDEN)),
    post(b"Content-Length: +%d" % len(HIDDEN)),
    post(b"Content-Length: \x0c%d" % len(HIDDEN)),
    post(b"content_length: %d" % len(HIDDEN)),
    post(b"Content-Length\0: 0"),
    post(b"Transfer-Encoding: chunked", body=b"0 \r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"0;x=\"\r\n\r\n\"\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"1;\nx\r\n\r\n0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"5\r\nhello0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\n\n0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"100000000000000001\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"-0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n" + HIDDEN),
    post(b"Transfer-Encoding: chunked", body=b"0\r\nContent-Length: 99\r\n\r\n" + HIDDEN),
    b"POST /d HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    b"GET /d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    b"GET /d HTTP/1.1\rHost: x\r\n\r\n" + HIDDEN,
    b"GET /d HTTP/1.1\nHost: x\n\n" + HIDDEN,
    b"GET /d HTTP/1.1\r\nHost: x\r\n\n" + HIDDEN,
    b"\r\nGET /d HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    GET + POST + CHUNKED + GET,
)  # fmt: skip


def ours(pieces: list[bytes]) -> list[Read]:
    """The requests that the endpoint would run, in order, until it closes the connection."""
    heads: list[Head] = []

    def begin(protocol: Http1, head: Head) -> Exchange:
        heads.append(head)
        return cast(Exchange, object())

    protocol = Http1(EndpointSettings(), cast(Wire, None), Budget(), lambda: False, begin)
    found: list[Read] = []
    for piece in pieces:
        if protocol.over:
            break
        protocol.feed(piece)
        while not protocol.over and protocol.exchange is not None and protocol.body and protocol.body.whole:
            found.append((heads[-1].method, heads[-1].target, protocol.body.hand_over()))
            if not heads[-1].keep_alive:
                return found
            protocol.proceed()
    return found


def theirs(data: bytes) -> list[Read]:
    """The same, as h11 has it."""
    connection, found = h11.Connection(h11.SERVER), list[Read]()
    connection.receive_data(data)
    try:
        while isinstance(request := connection.next_event(), h11.Request):
            body, event = b"", cast(Any, connection.next_event())
            while isinstance(event, h11.Data):
                body, event = body + event.data, cast(Any, connection.next_event())
            if not isinstance(event, h11.EndOfMessage):
                break
            found.append((request.method.decode().upper(), request.target, body))
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        pass
    return found


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("data", CLASSICS)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_what_is_run_is_what_another_reader_would_have_let_through(data: bytes, size: int) -> None:
    run = ours(in_pieces(data, size))
    assert run == theirs(data)[: len(run)]


def test_plain_requests_are_all_run_however_they_come() -> None:
    for size in (1, 3, 50, 10_000):
        assert ours(in_pieces(CLASSICS[-1], size)) == theirs(CLASSICS[-1])
        assert len(ours(in_pieces(CLASSICS[-1], size))) == 4


NASTY = (b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x0c", b"\x85", b"\xa0", b":", b";", b",", b"0", b"-",
         b"+", b"\"", b"\r\n ", b"chunked", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n",
         HIDDEN)  # fmt: skip


def broken(seed: int) -> bytes:
    """Some requests in a row, with a few bytes put in, taken out, or put in another's place."""
    dice = random.Random(seed)
    data = bytearray(b"".join(dice.choices((*CLASSICS, GET, POST, CHUNKED), k=dice.randint(1, 3))))
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(len(data) + 1)
        data[at : at + dice.choice((0, 0, 1, 2, 5))] = dice.choice(NASTY)
    return bytes(data)


@settings(max_examples=3000, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 64, 100_000]))
def test_no_break_makes_one_reader_see_a_request_that_the_other_does_not(seed: int, size: int) -> None:
    data = broken(seed)
    run = ours(in_pieces(data, size))
    assert run == theirs(data)[: len(run)], data
