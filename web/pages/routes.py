"""The pages over HTTP: `/`, `/operators` and their files.

Nothing is loaded from elsewhere and no script stands in a page, so the content policy allows neither; pictures and
films may come from wherever outputs are stored.
"""

from __future__ import annotations

from html import escape

from engine.errors import UserError
from web.http.exchange import Answer, Ask, Handler
from web.http.house import House
from web.http.problems import KNOWN, Kind
from web.http.route import Route
from web.pages.files import File, Site, load, made

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: https:",
        "media-src 'self' https:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE = (
    ("Content-Security-Policy", POLICY),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), microphone=(), geolocation=()"),
    ("Cache-Control", "no-cache"),
)
_FOREVER = (("Cache-Control", "public, max-age=31536000, immutable"),)
_REVALIDATED = (("Cache-Control", "no-cache"),)


def routes() -> tuple[Route, ...]:
    """The routes of the pages, over the files as they are now."""
    site = load()
    return (
        Route("GET", "/", page(site, "index.html"), "The tasks page", open=True, tag="pages"),
        Route("GET", "/operators", page(site, "operators.html"), "The operators' page", open=True, tag="pages"),
        Route("GET", "/docs/problems", problems_page(site), "What each code means", open=True, tag="pages"),
        Route("GET", "/favicon.ico", page(site, "mark.svg"), "The mark", open=True, tag="pages"),
        Route("GET", "/static/<version>/<name>", static(site), "A file of the pages", open=True, tag="pages"),
    )


def page(site: Site, name: str) -> Handler:
    """A handler that answers one page, revalidated at each visit."""

    async def show(house: House, ask: Ask) -> Answer:
        return send(site.files[name], ask, _PAGE)

    return show


def problems_page(site: Site) -> Handler:
    """A handler for the page that a problem's `type` points to: every code, with its status and title."""
    known = sorted(KNOWN.items(), key=lambda entry: (entry[1].status, entry[0]))
    rows = "".join(_row(code, kind) for code, kind in known)
    frame = site.files["problems.html"].body
    shown = made(frame.replace(b"{{rows}}", rows.encode()), "text/html; charset=utf-8")

    async def show(house: House, ask: Ask) -> Answer:
        return send(shown, ask, _PAGE)

    return show


def _row(code: str, kind: Kind) -> str:
    name = escape(code)
    return f'<tr id="{name}"><td><code>{name}</code></td><td>{kind.status}</td><td>{escape(kind.title)}</td></tr>'


def static(site: Site) -> Handler:
    """A handler for the pages' files: cached for ever under their own version, revalidated under any other."""

    async def file(house: House, ask: Ask) -> Answer:
        found = site.files.get(ask.args["name"])
        if found is None or ask.args["name"].endswith(".html"):
            raise UserError("not_found", "The pages have no such file.")
        return send(found, ask, _FOREVER if ask.args["version"] == site.version else _REVALIDATED)

    return file


def send(file: File, ask: Ask, headers: tuple[tuple[str, str], ...]) -> Answer:
    """The file, compressed for who takes it so; 304 for who has it already."""
    headers = (*headers, ("ETag", file.etag), ("Vary", "Accept-Encoding"), ("X-Content-Type-Options", "nosniff"))
    if file.etag in ask.headers.get("if-none-match", ""):
        return Answer(b"", 304, file.content_type, headers)
    if "gzip" in ask.headers.get("accept-encoding", ""):
        return Answer(file.compressed, 200, file.content_type, (*headers, ("Content-Encoding", "gzip")))
    return Answer(file.body, 200, file.content_type, headers)
