"""Serves outputs that are kept in a folder, to whoever has a signed link that has not expired.

The link is the permission: it is handed to a task's owner and may be given on, as a bucket's is. What a browser could
run (HTML, SVG, anything unknown) is a download and never shown in place. Ranges are served, for video players.
"""

from __future__ import annotations

import trio
from quart import Response, request
from quart.helpers import send_file
from quart_trio import QuartTrio

from engine.errors import UserError
from engine.outputs.describe import HEAD, INLINE, sniff
from persistence.artifacts import FolderStore, LinkSigner
from persistence.artifacts.folder import BadName
from web.http.app import refusal_response

MONTH = 30 * 24 * 3600
GONE = UserError("not_found", "There is no such file, or the link has expired. Fetch the task again for a new link.")


def serve_folder(app: QuartTrio, store: FolderStore, signer: LinkSigner) -> None:
    """Adds the route under which `signer` makes its links."""

    async def artifact(name: str) -> Response:
        query = request.args
        if not signer.valid(name, query.get("expires", ""), query.get("signature", "")):
            return refusal_response(GONE)
        try:
            return await _file(store, name)
        except (BadName, FileNotFoundError, IsADirectoryError):
            return refusal_response(GONE)

    app.add_url_rule("/artifacts/<path:name>", "artifact", artifact, methods=["GET"])


async def _file(store: FolderStore, name: str) -> Response:
    path = store.path(name)
    async with await trio.open_file(path, "rb") as file:
        content_type = sniff(await file.read(HEAD)).content_type
    shown = content_type in INLINE
    response = await send_file(
        path,
        mimetype=content_type,
        as_attachment=not shown,
        attachment_filename=path.name,
        conditional=True,
        cache_timeout=MONTH,
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cache-Control"] = f"private, max-age={MONTH}, immutable"
    return response
