"""The last line of a Quart websocket route: hands the client to a Socket process, whatever server this runs on.

May import quart and this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quart import websocket

from web.endpoint.asgi import AsgiTransport, pump
from web.endpoint.roster import Roster
from web.endpoint.settings import EndpointSettings
from web.endpoint.upgrade import EXTENSION, upgrade_of
from web.sockets.transport import Accept, Upgrade


def current_upgrade() -> Upgrade:
    """The request of the websocket route that is running."""
    return upgrade_of(websocket.scope)


async def serve_socket(
    accept: Accept, roster: Roster | None = None, settings: EndpointSettings | None = None
) -> tuple[str, int] | None:
    """Accepts the WebSocket of the running route and starts its Socket process; the route must return what this
    returns. On our endpoint that is at once, for the connection leaves the route; on any other server when the
    client has left, and `roster` and `settings` are the ones to use there."""
    extensions: dict[str, Any] = dict(websocket.scope["extensions"])
    take: Callable[[Accept], int] | None = extensions.get(EXTENSION)
    if take is not None:
        status = take(accept)
        return ("", status) if status else None
    roster = roster if roster is not None else Roster()
    if status := roster.refusal(accept):
        return "", status
    transport = AsgiTransport(current_upgrade(), accept, settings or EndpointSettings())
    status = await pump(transport, roster, websocket)
    return ("", status) if status else None
