"""A provider that asks through its service's official SDK, and reads the answer's stream itself.

The SDK knows addresses, headers, keys and its service's errors. It is not used at each token: a model of pydantic for
each costs more than all the rest of a token's way. Its own retries are off. The SDKs of OpenAI and Anthropic are made
by one generator and look alike, which is what makes this one class. May import `llm`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from types import ModuleType
from typing import Any

import httpx2

from engine.providers.failures import classify, failed
from engine.providers.llm import Reader, answered
from engine.providers.protocol import Failed, FailureKind, ProviderEvent, ProviderRequest
from engine.providers.streaming import Deadlines, Response, error_in, retry_after, trouble


class SdkProvider:
    """Subclass it with `name`, `library`, `client_class`, `_ask` and `_reader`.

    `base_url` is for gateways and tests, empty: the service's own; `http` for shared connections. The client is closed
    with the provider.
    """

    name: str
    library: ModuleType
    client_class: type[Any]

    def __init__(
        self,
        api_key: str,
        base_url: str = "",
        deadlines: Deadlines | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self._deadlines = deadlines or Deadlines()
        connect = self._deadlines.connect
        timeout = httpx2.Timeout(None, connect=connect, pool=connect)
        self._client = self.client_class(
            api_key=api_key, base_url=base_url or None, max_retries=0, timeout=timeout, http_client=http
        )

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        return answered(request, partial(self._opened, request), self._reader(request), self._deadlines, self._explain)

    async def aclose(self) -> None:
        await self._client.close()

    def _ask(self, request: ProviderRequest) -> Awaitable[Any]:
        """The SDK's raw response to the request, with its stream still to be read."""
        raise NotImplementedError

    def _reader(self, request: ProviderRequest) -> Reader:
        raise NotImplementedError

    async def _opened(self, request: ProviderRequest) -> Response:
        response: Response = (await self._ask(request)).http_response
        return response

    def _explain(self, problem: Exception) -> Failed | None:
        sdk = self.library
        if isinstance(problem, sdk.APIStatusError):
            error = error_in(problem.body if _wrapped(problem.body) else {"error": problem.body})
            return classify(problem.status_code, error, retry_after(problem.response.headers))
        if isinstance(problem, sdk.APIConnectionError):  # a timeout is one, too
            cause = problem.__cause__
            known = trouble(httpx2, cause) if isinstance(cause, Exception) else None
            return known or failed(FailureKind.RETRYABLE, "provider_down", raw=type(cause).__name__)
        if isinstance(problem, sdk.APIError):
            return failed(FailureKind.RETRYABLE, "bad_response", raw=type(problem).__name__)
        return trouble(httpx2, problem)


def _wrapped(body: object) -> bool:
    """Anthropic's SDK hands over the whole answer, OpenAI's what is under `error` in it."""
    return isinstance(body, dict) and "error" in body
