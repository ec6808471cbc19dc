"""Reading requests: as strict as RFC 9112 lets us be, and never otherwise than another strict reader reads them.

The other reader is h11, which runs behind many a proxy. Whatever it understands in another way than we do would be the
door to smuggled requests; what it tolerates and we refuse costs a client that no longer exists.
"""

from __future__ import annotations

import time

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from web.endpoint.chunks import MOST_TRAILERS, Chunks
from web.endpoint.head import END, Head, Malformed, hopeless, read_head

HOST = b"Host: x\r\n"


def head(*lines: bytes, line: bytes = b"POST /a?b=c HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *lines, b"", b""])


def test_a_request_is_read_with_its_headers_in_their_order() -> None:
    read = read_head(head(b"Host: x", b"Accept:  a/b \t", b"accept: c", b"Content-Length: 12"))
    assert read == Head(
        method="POST",
        target=b"/a?b=c",
        version="1.1",
        headers=[(b"host", b"x"), (b"accept", b"a/b"), (b"accept", b"c"), (b"content-length", b"12")],
        length=12,
        keep_alive=True,
        expects_continue=False,
        upgrades=False,
    )


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"Host: x", b"Transfer-Encoding: gzip"), 501),
        ((b"Host: x", b"Transfer-Encoding: chunked, chunked"), 501),
        ((b"Host: x", b"Transfer-Encoding: chunked", b"Content-Length: 3"), 400),
        ((b"Host: x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400),
        ((b"Host: x", b"Content-Length: 3", b"Content-Length: 3"), 400),
        ((b"Host: x", b"Content-Length: 3, 3"), 400),
        ((b"Host: x", b"Content-Length: +3"), 400),
        ((b"Host: x", b"Content-Length: -1"), 400),
        ((b"Host: x", b"Content-Length: 0x3"), 400),
        ((b"Host: x", b"Content-Length: 1_0"), 400),
        ((b"Host: x", b"Content-Length:"), 400),
        ((b"Host: x", b"Content-Length: " + b"9" * 40), 400),
        ((b"Host: x", b"Content-Length : 3"), 400),
        ((b"Host: x", b" Content-Length: 3"), 400),
        ((b"Host: x", b"Folded: a", b"  b"), 400),
        ((b"Host: x", b"Bare: a\nContent-Length: 3"), 400),
        ((b"Host: x", b"Bare: a\rContent-Length: 3"), 400),
        ((b"Host: x", b"Nul: \0"), 400),
        ((b"Host: x", b"Bell: \a"), 400),
        ((b"Host: x", b"no colon"), 400),
        ((b"Host: x", b": no name"), 400),
        ((b"Host: x", b"Host: y"), 400),
        ((), 400),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(lines: tuple[bytes, ...], status: int) -> None:
    with pytest.raises(Malformed) as refused:
        read_head(head(*lines))
    assert refused.value.status == status


@pytest.mark.parametrize(
    "line",
    [b"GET  / HTTP/1.1", b"GET /a b HTTP/1.1", b"GET / http/1.1", b"GET /\x7f HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /"],
)
def test_a_line_that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        read_head(head(b"Host: x", line=line))


def test_a_version_that_is_not_spoken_is_told() -> None:
    with pytest.raises(Malformed) as refused:
        read_head(head(b"Host: x", line=b"GET / HTTP/2.0"))
    assert refused.value.status == 505


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"\r\nGET /", b" GET", b"\xff", b"GET\t/"])
def test_first_bytes_that_can_become_no_request_need_not_be_waited_for(data: bytes) -> None:
    assert hopeless(data)


@pytest.mark.parametrize("data", [b"G", b"GET", b"GET ", b"GET / HTTP/1.1\r\nHo", b"X" * 40])
def test_first_bytes_of_a_request_are_waited_for(data: bytes) -> None:
    assert not hopeless(data)


@pytest.mark.parametrize("filling", [b" ", b"\t", b"a ", b"a\t ", b",", b"a"])
def test_no_header_costs_more_than_its_length(filling: bytes) -> None:
    """A header that is made so that a pattern tries every way to part it; held against one that is plain."""

    def seconds(value: bytes) -> float:
        data = head(b"Host: x", b"X: " + value + b"\0")
        began = time.perf_counter()
        with pytest.raises(Malformed):
            read_head(data)
        return time.perf_counter() - began

    assert min(seconds(filling * (200_000 // len(filling))) for _ in range(3)) < 0.1  # tried every way: a minute


# --- beside another reader -----------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"X-A"]
)
VALUES = st.sampled_from([b"x", b"chunked", b"Chunked", b"gzip", b"0", b"3", b"03", b"3 ", b"close", b"3, 3", b"\x01",
                          b"100-continue", b"keep-alive, Close", b"h2c", b"a b\tc", b"\xe9", b"", b"a\0b"])  # fmt: skip
ENDS = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b"\r\n ", b" \r\n", b"\0\r\n"])
FIELD = st.builds(lambda name, colon, value, end: name + colon + value + end,
                  NAMES, st.sampled_from([b": ", b":", b":\t ", b" :", b""]), VALUES, ENDS)  # fmt: skip
LINE = st.builds(lambda method, target, version, end: method + b" " + target + b" " + version + end,
                 st.sampled_from([b"GET", b"POST", b"HEAD", b"get", b"M-SEARCH", b"G(T"]),
                 st.sampled_from([b"/", b"/a?b", b"*", b"http://x/", b"/\xe9", b"/ b"]),
                 st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1"]), ENDS)  # fmt: skip
REQUESTS = st.builds(lambda line, host, fields: line + host + b"".join(fields) + b"\r\n",
                     LINE, st.sampled_from([HOST, HOST, HOST, b""]), st.lists(FIELD, max_size=4))  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(REQUESTS)
@example(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
def test_what_is_understood_is_understood_alike_elsewhere(data: bytes) -> None:
    end = data.find(END) + len(END)
    try:
        ours = read_head(data[:end])
    except Malformed:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(data[:end])
    theirs = other.next_event()
    assert isinstance(theirs, h11.Request)
    assert (ours.method, ours.target) == (theirs.method.decode().upper(), theirs.target)
    assert ours.version == theirs.http_version.decode()
    assert [h for h in ours.headers if h[0] != b"transfer-encoding"] == [
        h for h in theirs.headers if h[0] != b"transfer-encoding"
    ]
    assert ours.expects_continue == other.they_are_waiting_for_100_continue
    assert ours.keep_alive == (other.their_state not in (h11.MUST_CLOSE, h11.CLOSED) and _keeps(other))
    framing = dict(theirs.headers)
    assert (ours.length is None) == (b"transfer-encoding" in framing)
    if ours.length is not None:
        assert ours.length == int(framing.get(b"content-length", b"0"))


def _keeps(connection: h11.Connection) -> bool:
    return bool(connection._cstate.keep_alive)


# --- chunks --------------------------------------------------------------------------------------------------------


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_are_put_together_however_they_come(size: int) -> None:
    chunks = Chunks()
    data = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: gone\r\n\r\nGET /"
    body = b""
    for piece in in_pieces(data, size):
        if chunks.done:
            break
        body += chunks.feed(piece)
    assert (body, chunks.done) == (b"abc0123456789", True)
    assert b"GET /".startswith(chunks.rest)


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"\r\n", b" 1\r\n", b"1\nx\r\n", b"1_0\r\n", b"f" * 300,
        b"1\r\nab\r\n", b"1\r\na\n\n", b"3\r\nabcd", b"5;\0\r\n", b"5;" + b"y" * 300, b"f" * 16 + b"\r\n",
        b"0\r\nno colon\r\n\r\n", b"0\r\nContent-Length: 3\r\n\r\n", b"0\r\nHost: y\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * MOST_TRAILERS, b"0\r\n" + b"x" * (MOST_TRAILERS + 1),
        b"1\r\nx\r\n" * 5000,
    ],
)  # fmt: skip
def test_chunks_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Chunks().feed(data)


PIECES = st.sampled_from([b"3\r\nabc\r\n", b"0\r\n", b"\r\n", b"0\r\n\r\n", b"1\r\nz\r\n", b"00002\r\nhi\r\n", b"x",
                          b"2;a=b\r\nhi\r\n", b"1\r\nzz", b"A: b\r\n", b"1 \r\nq\r\n", b"\n",
                          b"GET / HTTP/1.1\r\n"])  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(1, 9))
def test_a_body_in_chunks_ends_where_it_ends_elsewhere(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    chunks, body = Chunks(), b""
    try:
        for piece in in_pieces(data, size):
            if chunks.done:
                chunks.rest += piece
            else:
                body += chunks.feed(piece)
    except Malformed:
        return
    if not chunks.done:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(head(b"Host: x", b"Transfer-Encoding: chunked") + data)
    assert isinstance(other.next_event(), h11.Request)
    theirs = b""
    while isinstance(event := other.next_event(), h11.Data):
        theirs += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (theirs, other.trailing_data[0]) == (body, chunks.rest)
