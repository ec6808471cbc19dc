"""httpx and httpx2 on our connections, against a server that says any bytes it is told, good ones and bad ones."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import httpx2
import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.http import exchange
from engine.http.pool import Pool
from engine.http.sdk import Transport2, sdk_client
from engine.http.transport import EXCHANGE, Transport, client
from tests.certificates import self_signed

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Script = Callable[["Peer"], Awaitable[None]]


@define(eq=False)
class Peer:
    """The server's end of a connection."""

    stream: trio.abc.Stream
    heard: bytes = b""
    over: trio.Event = field(factory=trio.Event)

    async def request(self) -> bytes:
        """The next request's head; bodies with a length are read and dropped."""
        while b"\r\n\r\n" not in self.heard:
            more = await self.stream.receive_some(65536)
            if not more:
                raise trio.BrokenResourceError("the client is gone")
            self.heard += more
        head, _, self.heard = self.heard.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line[15:])
                while len(self.heard) < size:
                    self.heard += await self.stream.receive_some(65536)
                self.heard = self.heard[size:]
        return head

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.stream.send_all(piece)

    async def gone(self) -> None:
        """Waits until the client has closed its end."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return


@define(eq=False)
class Served:
    url: str = ""
    peers: list[Peer] = field(factory=list)


@asynccontextmanager
async def serving(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    """Runs `script` for each connection, on a free port of loopback."""
    served = Served()

    async def connection(raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw if context is None else trio.SSLStream(raw, context, server_side=True)
        peer = Peer(stream)
        served.peers.append(peer)
        try:
            await script(peer)
        except (trio.BrokenResourceError, ssl.SSLError):
            return
        finally:
            await trio.aclose_forcefully(raw)
            peer.over.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, connection, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            served.url = f"http{'s' if context else ''}://127.0.0.1:{port}"
            yield served
            nursery.cancel_scope.cancel()


def says(*pieces: bytes) -> Script:
    """Answers every request with the same, and then closes when `pieces` end in an empty one."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(*pieces)
            if pieces and not pieces[-1]:
                return

    return script


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
async def http(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A client of either library; `library` is the library itself."""
    async with make(request.param) as made:
        made.library = request.param
        yield made


def make(library: Any, pool: Pool | None = None, timeout: float = 5.0) -> Any:
    transport = (Transport if library is httpx else Transport2)(pool or Pool(None))
    return library.AsyncClient(transport=transport, timeout=timeout, trust_env=False)


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ([OK], b"hello"),
        ([CHUNKED, b"2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"], b"hello"),
        ([CHUNKED, b"5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"], b"hello"),
        ([b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo", b""], b"hello"),
        ([b"HTTP/1.1 200 OK\r\n\r\nhello", b""], b"hello"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b""),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", OK], b"hello"),
        ([b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"hello"), b""], b"hello"),
    ],
    ids=["length", "chunks", "extensions and trailers", "until the end (1.0)", "until the end", "204", "1xx", "gzip"],
)
async def test_every_kind_of_body_is_read_to_its_end(http: Any, answer: list[bytes], body: bytes) -> None:
    async with serving(says(*answer)) as served:
        for _ in range(2):
            response = await http.get(served.url)
            assert response.content == body
            assert response.status_code in (200, 204)


async def test_what_is_asked_is_written_as_the_client_has_it(http: Any) -> None:
    async def script(peer: Peer) -> None:
        head = await peer.request()
        assert head.startswith(b"POST /a%20b?c=d HTTP/1.1\r\n")
        assert b"\r\nX-Odd: \xe9" in head
        assert head.lower().count(b"\r\nhost: 127.0.0.1") == 1
        await peer.say(OK)
        await peer.gone()

    async with serving(script) as served:
        headers = [(b"X-Odd", b"\xe9")]
        assert (await http.post(f"{served.url}/a b?c=d", content=b"x" * 300_000, headers=headers)).text == "hello"


async def test_a_body_of_unknown_length_is_sent_in_chunks(http: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b""
        yield b"c" * 20

    async def script(peer: Peer) -> None:
        assert b"transfer-encoding: chunked" in (await peer.request()).lower()
        while not peer.heard.endswith(b"0\r\n\r\n"):
            peer.heard += await peer.stream.receive_some(100)
        assert peer.heard == b"2\r\nab\r\n14\r\n" + b"c" * 20 + b"\r\n0\r\n\r\n"
        await peer.say(OK)
        await peer.gone()

    async with serving(script) as served:
        assert (await http.post(served.url, content=body())).text == "hello"


async def test_the_answer_to_head_has_no_body_whatever_its_length_says(http: Any) -> None:
    async with serving(says(OK.removesuffix(b"hello"))) as served:
        for _ in range(2):
            response = await http.head(served.url)
            assert (response.content, response.headers["content-length"]) == (b"", "5")


async def test_pieces_that_have_arrived_are_handed_over_as_one(http: Any) -> None:
    whole = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"2\r\nhe\r\n")
        await peer.say(*[b"1\r\n%c\r\n" % byte for byte in b"llo you"], b"0\r\n\r\n")
        whole.set()
        await peer.gone()

    async with serving(script) as served, http.stream("GET", served.url) as response:
        await whole.wait()
        pieces = [piece async for piece in response.aiter_bytes()]
        assert b"".join(pieces) == b"hello you"
        assert len(pieces) <= 2


PARTS = (b"data: one\n\n", b"data: tw\xc3\xb6\n\n", b"x" * 70)
WHOLE = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in PARTS) + b"0\r\n\r\n"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=12))
async def test_an_answer_is_the_same_wherever_its_bytes_are_cut(cuts: list[int]) -> None:
    places = sorted({0, *cuts, len(WHOLE)})
    async with serving(says(*(WHOLE[a:b] for a, b in pairwise(places)))) as served, make(httpx) as http:
        assert (await http.get(served.url)).content == b"".join(PARTS)


# --- connections --------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_one_that_the_server_closed_is_not(http: Any) -> None:
    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.say(OK)

    async with serving(script) as served:
        for asked in range(1, 6):
            assert (await http.get(served.url)).text == "hello"
            assert len(served.peers) == (asked + 1) // 2
            if asked % 2 == 0:
                await served.peers[-1].over.wait()


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        OK.replace(b"1.1", b"1.0"),
        OK + b"HTTP/1.1 200 OK\r\n",
    ],
    ids=["close", "1.0", "more than was asked"],
)
async def test_a_connection_that_cannot_be_trusted_with_more_is_not_used_again(http: Any, answer: bytes) -> None:
    async with serving(says(answer)) as served:
        for _ in range(2):
            try:
                assert (await http.get(served.url)).text == "hello"
            except http.library.RemoteProtocolError:
                assert answer.startswith(OK)
        assert len(served.peers) == 2


async def test_a_connection_whose_answer_was_left_unread_is_closed(http: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"2\r\nhe\r\n")
        await peer.gone()

    async with serving(script) as served:
        async with http.stream("GET", served.url):
            pass
        await served.peers[0].over.wait()


async def test_the_last_bytes_after_the_last_word_do_not_cost_the_connection(http: Any) -> None:
    read, said = trio.Semaphore(0), trio.Semaphore(0)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(CHUNKED, b"2\r\nhe\r\n")
            await read.acquire()
            await peer.say(b"0\r\n\r\n")
            said.release()

    async with serving(script) as served:
        for _ in range(2):
            async with http.stream("GET", served.url) as response, aclosing(response.aiter_bytes()) as pieces:
                await anext(pieces)
                read.release()
                await said.acquire()
        assert len(served.peers) == 1


async def test_cancellation_closes_the_connection_and_the_client_goes_on(http: Any) -> None:
    async def script(peer: Peer) -> None:
        if b"slow" in await peer.request():
            await peer.say(CHUNKED, b"2\r\nhe\r\n")
            await peer.gone()
        else:
            await peer.say(OK)
            await peer.gone()

    async with serving(script) as served:
        with trio.move_on_after(0.2):
            async with http.stream("GET", f"{served.url}/slow") as response:
                async for _ in response.aiter_bytes():
                    pass
        await served.peers[0].over.wait()
        assert (await http.get(served.url)).text == "hello"


async def test_there_are_never_more_connections_than_allowed(http: Any) -> None:
    async with make(http.library, Pool(None, most=2), timeout=0.3) as http2, serving(says(CHUNKED)) as served:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(http2.stream("GET", served.url))
            with pytest.raises(http.library.PoolTimeout):
                await http2.get(served.url)
        async with http2.stream("GET", served.url) as response:
            assert response.status_code == 200


async def test_idle_connections_are_few() -> None:
    pool = Pool(None, most_idle=1)
    async with make(httpx, pool) as http, serving(says(OK)) as served:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(http.get, served.url)
        assert sum(map(len, pool._idle.values())) == 1


async def test_a_connection_that_has_been_idle_for_too_long_is_not_used() -> None:
    async with make(httpx, Pool(None, keep=0.0)) as http, serving(says(OK)) as served:
        for _ in range(3):
            await http.get(served.url)
        assert len(served.peers) == 3


# --- bad days -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ([b""], "RemoteProtocolError"),
        ([b"SSH-2.0-OpenSSH\r\n"], "RemoteProtocolError"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", b""], "RemoteProtocolError"),
        ([CHUNKED + b"5\r\nhel", b""], "RemoteProtocolError"),
        ([CHUNKED + b"zz\r\nhello"], "RemoteProtocolError"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"], "RemoteProtocolError"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "RemoteProtocolError"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * exchange.MAX_HEAD], "RemoteProtocolError"),
        ([b"HTTP/1.1 200 OK\r\n"], "ReadTimeout"),
        ([CHUNKED + b"5\r\nhel"], "ReadTimeout"),
    ],
    ids=[
        "nothing", "not HTTP", "short", "cut chunk", "bad chunk", "two lengths", "upgrade", "endless head",
        "hangs in the head", "hangs in the body",
    ],
)  # fmt: skip
async def test_a_broken_answer_is_an_error_that_httpx_knows(http: Any, answer: list[bytes], wrong: str) -> None:
    http.timeout = http.library.Timeout(2.0, read=0.3)
    async with serving(says(*answer)) as served:
        with pytest.raises(getattr(http.library, wrong)):
            await http.get(served.url)


async def test_nobody_there_and_a_name_that_leads_nowhere(http: Any) -> None:
    with pytest.raises(http.library.ConnectError):
        await http.get("http://127.0.0.1:9/")
    with pytest.raises(http.library.ConnectError):
        await http.get("http://nowhere.invalid/")
    with pytest.raises(http.library.UnsupportedProtocol):
        await http.get("ftp://127.0.0.1/")


@pytest.mark.parametrize("headers", [{"x": "a\r\nEvil: yes"}, {"x": "a\0b"}, {"x\r\nEvil": "yes"}])
async def test_a_header_cannot_smuggle_in_another(http: Any, headers: dict[str, str]) -> None:
    async with serving(says(OK)) as served:
        with pytest.raises(http.library.LocalProtocolError):
            await http.get(served.url, headers=headers)
        assert all(not peer.heard for peer in served.peers)


async def test_a_server_that_refuses_in_the_middle_of_a_request_is_heard(http: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(1000)
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        assert isinstance(peer.stream, trio.SocketStream)
        await peer.stream.send_eof()
        await peer.gone()

    async with serving(script) as served:
        assert (await http.post(served.url, content=b"x" * 20_000_000)).status_code == 413


async def test_a_deadline_of_the_readers_own_ends_a_wait(http: Any) -> None:
    async with serving(says(CHUNKED, b"2\r\nhe\r\n")) as served, http.stream("GET", served.url) as response:
        pieces = aiter(response.aiter_bytes())
        assert await anext(pieces) == b"he"
        response.extensions[EXCHANGE].deadline = trio.current_time() + 0.1
        with pytest.raises(exchange.Overdue):
            await anext(pieces)


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def server_side(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_over_tls_bodies_are_whole_records_are_gathered_and_connections_kept(
    certificate: tuple[str, str], library: Any
) -> None:
    said = trio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if b"tokens" in await peer.request():
                await peer.say(CHUNKED, *[b"2\r\nhe\r\n"] * 50, b"0\r\n\r\n")  # a record each
                said.set()
            else:
                await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000)

    context = ssl.create_default_context(cafile=certificate[0])
    async with serving(script, server_side(certificate)) as served, make(library, Pool(context)) as http:
        assert (await http.post(served.url, content=b"y" * 200_000)).content == b"x" * 300_000
        async with http.stream("GET", f"{served.url}/tokens") as response:
            await said.wait()
            pieces = [piece async for piece in response.aiter_bytes()]
        assert b"".join(pieces) == b"he" * 50
        assert len(pieces) <= 3
        assert len(served.peers) == 1


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_certificate_that_is_not_trusted_or_a_handshake_that_hangs_is_no_connection(
    certificate: tuple[str, str], library: Any
) -> None:
    async with make(library, Pool(ssl.create_default_context()), timeout=0.5) as http:
        async with serving(says(OK), server_side(certificate)) as served:
            with pytest.raises(library.ConnectError):
                await http.get(served.url)
        async with serving(lambda peer: peer.gone()) as served:
            with pytest.raises(library.ConnectTimeout):
                await http.get(served.url.replace("http:", "https:"))


# --- the way in ---------------------------------------------------------------------------------------------


async def test_where_the_environment_names_a_proxy_the_library_goes_its_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.request())
        await peer.say(OK)
        await peer.gone()

    async with serving(script) as served:
        monkeypatch.setenv("http_proxy", served.url)
        for made in (
            client(httpx.Timeout(5), ssl.create_default_context(), 5),
            sdk_client(ssl.create_default_context()),
        ):
            async with made as http:
                assert (await http.get("http://far.invalid/x")).text == "hello"
    assert [head.split()[1] for head in asked] == [b"http://far.invalid/x"] * 2
