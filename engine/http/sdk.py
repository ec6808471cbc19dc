"""The same transport for httpx2, on which the official SDKs of OpenAI and Anthropic are built. Imports this package."""

from __future__ import annotations

import ssl

import httpx2

from engine.http.pool import Pool
from engine.http.transport import BodyStream, begun, direct, extensions


class Httpx2Body(BodyStream, httpx2.AsyncByteStream):
    library = httpx2


class Transport2(httpx2.AsyncBaseTransport):
    """httpx2's way to the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        held = await begun(self._pool, request, httpx2)
        exchange = held.exchange
        return httpx2.Response(
            exchange.status, headers=exchange.headers, stream=Httpx2Body(held), extensions=extensions(exchange)
        )

    async def aclose(self) -> None:
        self._pool.close()


def sdk_client(context: ssl.SSLContext, most: int = 4000) -> httpx2.AsyncClient:
    """A client for an SDK. It follows no redirect: a request with a prompt and a key goes where it was sent."""
    if not direct():
        return httpx2.AsyncClient(verify=context, limits=httpx2.Limits(max_connections=most))
    return httpx2.AsyncClient(transport=Transport2(Pool(context, most)), trust_env=False)
