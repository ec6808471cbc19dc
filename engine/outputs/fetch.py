"""Gets an output's bytes, from the provider's URL, a data URL or memory, as chunks that never pile up.

Every redirect is checked as the first URL was. Sizes and times are bounded by whoever reads. One try: who asks again,
and when, is decided elsewhere. May import httpcore and `guard`.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urljoin, urlunsplit

import httpcore
import trio
from attrs import frozen

from engine.outputs.data_url import read_data_url
from engine.outputs.errors import Cure, OutputRefused, bad, unavailable
from engine.outputs.guard import Policy, check_url, guarded_pool
from engine.providers.protocol import OutputReady

__all__ = ["Fetcher", "Policy", "Source"]

REDIRECTS = (301, 302, 303, 307, 308)
GONE = (401, 403, 404, 410)
"""What file servers say of a link that has expired, or of a file that is no more."""
CHUNK = 64 * 1024
BROKEN = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)


@frozen
class Source:
    """An output being read. `size` is what the other side says it will be: a hint, never believed."""

    chunks: AsyncIterator[bytes]
    size: int | None = None


class Fetcher:
    """Fetches for one provider. `headers` (credentials) go to hosts of the policy only, never after a redirect away."""

    def __init__(
        self,
        policy: Policy,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        redirects: int = 5,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._headers = dict(headers or {})
        self._timeouts = {"connect": 10.0, "read": timeout, "write": timeout, "pool": timeout}
        self._redirects = redirects
        self._pool = guarded_pool(policy, context)

    @asynccontextmanager
    async def open(self, event: OutputReady) -> AsyncIterator[Source]:
        """The bytes of an output. Raises OutputRefused here or while they are read."""
        if event.data is not None:
            yield Source(_each(_slices(event.data)), len(event.data))
        elif event.url is None:
            raise bad("The provider announced an output without content.")
        elif event.url.startswith("data:"):
            yield Source(_each(read_data_url(event.url).slices()))
        else:
            async with self._get(event.url) as response:
                yield Source(_body(response), _length(response))

    @asynccontextmanager
    async def _get(self, url: str) -> AsyncIterator[httpcore.Response]:
        origin = check_url(url, self._policy).netloc
        for _ in range(self._redirects + 1):
            parts = check_url(url, self._policy)
            request = self._request(parts, self._headers if parts.netloc == origin else {})
            with _translated():
                response = await self._pool.handle_async_request(request)
            try:
                if response.status not in REDIRECTS:
                    _check_status(response.status)
                    yield response
                    return
                url = _next(url, _header(response, b"location"))
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await response.aclose()
        words = "The provider's output URL redirects in circles."
        raise OutputRefused("too_many_redirects", words, "It is tried again by itself.", Cure.WAIT)

    def _request(self, parts: SplitResult, headers: Mapping[str, str]) -> httpcore.Request:
        every = {"Host": parts.netloc, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        target = urlunsplit(parts._replace(fragment=""))
        return httpcore.Request("GET", target, headers=list(every.items()), extensions={"timeout": self._timeouts})

    async def aclose(self) -> None:
        await self._pool.aclose()


def _slices(data: bytes) -> Iterable[bytes]:
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
        await trio.lowlevel.checkpoint()


async def _body(response: httpcore.Response) -> AsyncIterator[bytes]:
    """What the server sends. One that compresses although we asked it not to is undone, a piece at a time: who reads
    counts what comes out, so that a bomb ends at the limit like any other file."""
    encoding = (_header(response, b"content-encoding") or "identity").strip().lower()
    with _translated():
        if encoding in ("identity", ""):
            async for chunk in response.aiter_stream():
                yield chunk
        elif encoding in ("gzip", "x-gzip", "deflate"):
            async for chunk in _inflated(response):
                yield chunk
        else:
            raise unavailable(f"it is encoded as {encoding[:20]}")


async def _inflated(response: httpcore.Response) -> AsyncIterator[bytes]:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        async for chunk in response.aiter_stream():
            while chunk and not inflate.eof:
                yield inflate.decompress(chunk, CHUNK)
                chunk = inflate.unconsumed_tail
                await trio.lowlevel.checkpoint()
        if not inflate.eof:
            raise unavailable("its compression breaks off")
    except zlib.error:
        raise unavailable("its compression is broken") from None


def _next(url: str, location: str | None) -> str:
    try:
        return urljoin(url, location or "")
    except ValueError:
        raise unavailable("it redirects to nowhere") from None


def _check_status(status: int) -> None:
    if status in GONE:
        words = "The provider's link to the output does not work any more."
        raise OutputRefused("output_expired", words, "Run the task again: it is bought anew.", Cure.FRESH)
    if status != 200:
        raise unavailable(f"its file server answered {status}")


def _length(response: httpcore.Response) -> int | None:
    length = _header(response, b"content-length") or ""
    return (
        int(length) if length.isdecimal() and len(length) < 16 and not _header(response, b"content-encoding") else None
    )


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


class _translated:
    """Network errors as what they mean for the task: the same again may do better."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        if isinstance(problem, BROKEN):
            raise unavailable(type(problem).__name__) from problem
