"""What httpx is given in the place of its own transport; `sdk` has the same for httpx2. May import this package.

The response's extension `exchange` is what its body is read from. A piece of it is all that had arrived when it was
read: who reads later reads more at once, and loses no time by it. Its `deadline` bounds the next waits for a piece.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.request import getproxies

import httpx

from engine.http.exchange import Ask, BadRequest, Broken, Exchange, TimedOut
from engine.http.pool import CannotConnect, ConnectTimedOut, Held, NoneFree, Origin, Patience, Pool

EXCHANGE = "exchange"
_PORTS = {"http": 80, "https": 443}


class BodyStream:
    """A response's body, as httpx reads it; `library` is the httpx whose exceptions it raises."""

    library: ModuleType

    def __init__(self, held: Held) -> None:
        self._held = held

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._held.exchange
        with translated(self.library):
            while piece := await exchange.piece():
                yield piece

    async def aclose(self) -> None:
        self._held.close()


class HttpxBody(BodyStream, httpx.AsyncByteStream):
    library = httpx


class Transport(httpx.AsyncBaseTransport):
    """httpx's way to the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        held = await begun(self._pool, request, httpx)
        exchange = held.exchange
        return httpx.Response(
            exchange.status, headers=exchange.headers, stream=HttpxBody(held), extensions=extensions(exchange)
        )

    async def aclose(self) -> None:
        self._pool.close()


async def begun(pool: Pool, request: Any, library: ModuleType) -> Held:
    """Sends a request of either library and reads the answer's head. Raises the library's own exceptions."""
    url = request.url
    if url.scheme not in _PORTS:
        raise library.UnsupportedProtocol(f"only http and https are spoken here, not {url.scheme!r}", request=request)
    timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
    name = request.extensions.get("sni_hostname")
    origin = Origin(url.scheme == "https", url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme], name)
    ask = Ask(
        request.method.encode("ascii"),
        request.extensions.get("target", url.raw_path),
        request.headers.raw,
        request.stream,
        timeouts.get("read"),
        timeouts.get("write"),
    )
    with translated(library, request):
        return await pool.begin(origin, ask, Patience(timeouts.get("pool"), timeouts.get("connect")))


@contextmanager
def translated(library: ModuleType, request: Any = None) -> Iterator[None]:
    """Our exceptions as the library's, which its users know."""
    try:
        yield
    except (CannotConnect, ConnectTimedOut, NoneFree, TimedOut, Broken, BadRequest, OSError) as problem:
        raise _kind(library, problem)(str(problem) or type(problem).__name__, request=request) from problem


def _kind(library: ModuleType, problem: Exception) -> Any:
    match problem:
        case CannotConnect():
            return library.ConnectError
        case ConnectTimedOut():
            return library.ConnectTimeout
        case NoneFree():
            return library.PoolTimeout
        case TimedOut(what="write"):
            return library.WriteTimeout
        case TimedOut():
            return library.ReadTimeout
        case BadRequest():
            return library.LocalProtocolError
        case Broken():
            return library.RemoteProtocolError
    return library.ReadError


def extensions(exchange: Exchange) -> dict[str, Any]:
    return {
        "http_version": f"HTTP/{exchange.version}".encode(),
        "reason_phrase": exchange.reason,
        EXCHANGE: exchange,
    }


def trusted() -> ssl.SSLContext:
    """The certificates that httpx trusts. Reading them takes some 20 ms: once is enough."""
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def direct() -> bool:
    """Whether requests go straight to their servers. Where the environment names a proxy, httpx's own way is used."""
    return not {"http", "https", "all"} & getproxies().keys()


def client(timeout: httpx.Timeout, context: ssl.SSLContext, most: int) -> httpx.AsyncClient:
    """An httpx client on connections of ours, at most so many at once."""
    if not direct():
        return httpx.AsyncClient(timeout=timeout, verify=context, limits=httpx.Limits(max_connections=most))
    return httpx.AsyncClient(timeout=timeout, transport=Transport(Pool(context, most)), trust_env=False)
