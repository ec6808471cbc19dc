"""Gets an output's bytes, from the provider's URL, a data URL or memory, as chunks that never pile up.

Every redirect is checked as the first URL was. Sizes and times are bounded. May import httpcore and `guard`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import unquote_to_bytes, urljoin

import httpcore
import trio
from attrs import frozen

from engine.outputs.errors import OutputRefused
from engine.outputs.guard import Policy, check_url, guarded_pool
from engine.providers.protocol import OutputReady

__all__ = ["Fetcher", "Policy", "Source"]

REDIRECTS = (301, 302, 303, 307, 308)
GONE = (403, 404, 410)
CHUNK = 64 * 1024


@frozen
class Source:
    """An output being read. `declared_type` is what the other side calls it: a hint, never believed."""

    chunks: AsyncIterator[bytes]
    declared_type: str | None = None


class Fetcher:
    """Fetches for one provider. `headers` (credentials) go to hosts of the policy only, never after a redirect away."""

    def __init__(
        self,
        policy: Policy,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        redirects: int = 5,
    ) -> None:
        self._policy = policy
        self._headers = dict(headers or {})
        self._timeouts = {"connect": 10.0, "read": timeout, "write": timeout, "pool": timeout}
        self._redirects = redirects
        self._pool = guarded_pool(policy)

    @asynccontextmanager
    async def open(self, event: OutputReady) -> AsyncIterator[Source]:
        """The bytes of an output. Raises OutputRefused here or while they are read."""
        if event.data is not None:
            yield Source(_slices(event.data), event.content_type)
        elif event.url is None:
            raise OutputRefused("no_output", "The provider announced an output without content.", "Try again.", True)
        elif event.url.startswith("data:"):
            declared, data = decode_data_url(event.url)
            yield Source(_slices(data), declared)
        else:
            async with self._get(event.url) as response:
                yield Source(_body(response), _header(response, b"content-type"))

    @asynccontextmanager
    async def _get(self, url: str) -> AsyncIterator[httpcore.Response]:
        origin = check_url(url, self._policy).netloc
        for _ in range(self._redirects + 1):
            headers = self._headers if check_url(url, self._policy).netloc == origin else {}
            with _translated():
                response = await self._pool.handle_async_request(self._request(url, headers))
            try:
                if response.status not in REDIRECTS:
                    _check_status(response.status)
                    yield response
                    return
                url = urljoin(url, _header(response, b"location") or "")
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await response.aclose()
        raise OutputRefused("too_many_redirects", "The provider's output URL redirects in circles.", "Try again.", True)

    def _request(self, url: str, headers: Mapping[str, str]) -> httpcore.Request:
        parts = check_url(url, self._policy)
        every = {"Host": parts.netloc, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        return httpcore.Request("GET", url, headers=list(every.items()), extensions={"timeout": self._timeouts})

    async def aclose(self) -> None:
        await self._pool.aclose()


def decode_data_url(url: str) -> tuple[str | None, bytes]:
    """The media type and the bytes of a data URL (RFC 2397). Raises OutputRefused."""
    head, comma, body = url.removeprefix("data:").partition(",")
    declared = head.partition(";")[0] or None
    try:
        if not comma:
            raise ValueError("no comma")
        data = base64.b64decode(body, validate=False) if head.endswith(";base64") else unquote_to_bytes(body)
    except (ValueError, binascii.Error):
        raise OutputRefused("bad_output", "The provider's data URL cannot be decoded.", "Try again.", True) from None
    return declared, data


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


async def _body(response: httpcore.Response) -> AsyncIterator[bytes]:
    with _translated():
        async for chunk in response.aiter_stream():
            yield chunk


def _check_status(status: int) -> None:
    if status in GONE:
        raise OutputRefused("output_expired", "The provider no longer has the output.", "Run the task again.", True)
    if status >= 400:
        raise OutputRefused("output_unavailable", f"The provider's file server answered {status}.", "Try again.", True)
    if status != 200:
        raise OutputRefused("output_unavailable", f"The provider's file server answered {status}.", "Try again.", True)


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


class _translated:
    """Network errors as what they mean for the task: another attempt may do better."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        if isinstance(problem, httpcore.TimeoutException | httpcore.NetworkError | httpcore.ProtocolError | OSError):
            words = f"The provider's output could not be fetched ({type(problem).__name__})."
            raise OutputRefused("output_unavailable", words, "Try again.", True) from problem
