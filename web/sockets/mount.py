"""The routes of a socket in a Quart application. May import quart, `web.endpoint` and the door."""

from __future__ import annotations

from typing import Any

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from web.endpoint.roster import Roster
from web.endpoint.serve import current_upgrade, serve_socket
from web.endpoint.settings import EndpointSettings
from web.endpoint.upgrade import upgrade_of
from web.sockets.door import Door, Refusal
from web.sockets.longpoll import DENIED, LongPolls, Poll

OTHER_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def mount(
    app: QuartTrio, path: str, door: Door, roster: Roster | None = None, settings: EndpointSettings | None = None
) -> None:
    """Serves sockets at `<path>/websocket`. `path` may have several segments and variables, as `/t/<tenant>/socket`.

    `roster` and `settings` are for servers other than our endpoint.
    """

    async def connect(**variables: str) -> Any:
        answer = door.decide(current_upgrade(), variables)
        if isinstance(answer, Refusal):
            return "", answer.status
        return await serve_socket(answer, roster, settings)

    async def no_upgrade(**variables: str) -> tuple[str, int]:
        return "", 400

    url = f"{path.rstrip('/')}/websocket"
    app.add_websocket(url, f"socket {path}", connect)
    app.add_url_rule(url, f"no socket {path}", no_upgrade, methods=OTHER_METHODS, provide_automatic_options=False)


def mount_longpoll(app: QuartTrio, path: str, polls: LongPolls) -> None:
    """Serves `<path>/longpoll` for clients that cannot keep a WebSocket. Pages of allowed origins may use it."""

    async def poll() -> Response:
        upgrade = upgrade_of(request.scope)
        if not polls.door.origins.allows(upgrade.header("origin"), upgrade.header("host")):
            return _answer(Poll(DENIED))
        if request.method == "OPTIONS":
            return _answer(None)
        if request.method == "POST":
            body = await request.get_data(as_text=False)
            assert isinstance(body, bytes)
            return _answer(await polls.post(upgrade, body))
        return _answer(await polls.get(upgrade))

    methods = ("GET", "POST", "OPTIONS")
    url = f"{path.rstrip('/')}/longpoll"
    app.add_url_rule(url, f"longpoll {path}", poll, methods=methods, provide_automatic_options=False)


def _answer(poll: Poll | None) -> Response:
    """HTTP 200 whatever happened: what did is in the body."""
    body = b"" if poll is None else msgspec.json.encode(poll)
    response = Response(body, 200 if poll else 204, content_type="application/json; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    origin = request.headers.get("Origin")
    if origin:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = ", ".join(
            ("Content-Type", "Authorization", "X-Phoenix-AuthToken", "X-Phoenix-Longpoll-Token")
        )
        response.headers["Access-Control-Max-Age"] = "600"
    return response
