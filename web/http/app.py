"""The HTTP application: the table of routes on Quart-Trio, and what Quart itself refuses, as problem documents.

`create_app` gives a `QuartTrio` to which the pages, the sockets' handshake and others add their routes; the whole is
an ASGI application. May import everything in `web.http`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quart import Response, current_app, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from engine.errors import UserError
from web.http import direct, openapi
from web.http.cors import preflight
from web.http.exchange import Answer
from web.http.house import House
from web.http.perform import Incoming, concluded, incoming, perform, refusal
from web.http.route import Route
from web.http.routes import ROUTES
from web.pages.routes import routes as pages

_REFUSED = {
    400: ("invalid_request", "The request cannot be read. Check its line and headers."),
    404: ("not_found", "There is nothing at this path. GET /api/openapi.json lists what there is."),
    405: ("method_not_allowed", "This path has other methods: see the header Allow."),
    408: ("request_timeout", "The body did not arrive in time. Send it again."),
    416: ("range_not_satisfiable", "The file has no such range. Ask for one within its length."),
    413: ("body_too_large", "The body is too large. Send less, or send a URL instead of the data."),
}


class Application(QuartTrio):
    """Quart, with a short way for the calls that must be cheap, and for browsers that ask before they send."""

    house: House
    direct: dict[tuple[str, str], Route]

    async def asgi_app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await super().asgi_app(scope, receive, send)
        elif (route := self.direct.get((scope["method"], scope["path"]))) is not None:
            await direct.serve(self.house, route, scope, receive, send)
        elif scope["method"] == "OPTIONS" and scope["path"].startswith("/api/"):
            await direct.write(send, preflight(self.house.origins, incoming(scope).headers))
        else:
            await super().asgi_app(scope, receive, send)


def create_app(house: House, more: Iterable[Route] = (), version: str = "0.1.0") -> Application:
    """The HTTP application over `house`: the API's routes, `more` of the kind, their description, and the pages."""
    app = Application("elwift", static_folder=None)
    app.house = house
    app.config["MAX_CONTENT_LENGTH"] = house.limits.body
    app.config["BODY_TIMEOUT"] = house.limits.body_timeout
    app.register_error_handler(HTTPException, _refuse)
    api = (*ROUTES, *more)
    app.direct = {(route.method, route.path): route for route in api if route.direct}
    for route in (*api, openapi.route(api, version), *pages()):
        add_route(app, house, route)
    return app


def add_route(app: QuartTrio, house: House, route: Route) -> None:
    """Serves `route` by Quart."""

    async def view(**args: str) -> Response:
        body = await request.get_data(False, False, False) if route.method in ("POST", "PUT", "PATCH") else b""
        return response(await perform(house, route, _head(), args, body))

    app.add_url_rule(route.path, f"{route.method} {route.path}", view, methods=[route.method])


def response(answer: Answer) -> Response:
    """Quart's response object for an answer."""
    made = Response(answer.body, answer.status, content_type=answer.content_type)
    if answer.status in direct.BODILESS:
        del made.headers["Content-Type"], made.headers["Content-Length"]
    for name, value in answer.headers:
        made.headers.add(name, value)
    return made


def _head() -> Incoming:
    return incoming(request.scope)


def refusal_response(error: UserError) -> Response:
    """Quart's response for a refusal of the request at hand."""
    head = _head()
    house: House = current_app.house  # type: ignore[attr-defined]
    return response(concluded(house, "unrouted", head, refusal(error, head.request_id)))


async def _refuse(error: HTTPException) -> Response:
    code, message = _REFUSED.get(error.code or 500, ("invalid_request", "The request was refused."))
    made = refusal_response(UserError(code, message))
    valid_methods = getattr(error, "valid_methods", None)
    if valid_methods:
        made.headers["Allow"] = ", ".join(sorted(valid_methods))
    return made
