"""Serves outputs that are kept in a folder, to whoever has a signed link that has not expired.

The link is the permission: it is handed to a task's owner and may be given on, as a bucket's is. What a browser could
run (HTML, SVG, anything unknown) is a download and never shown in place. Ranges are served, for video players. A name
never changes its content, so its last part is the file's ETag.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import trio
from attrs import frozen
from quart import Response, request
from quart_trio import QuartTrio

from engine.errors import UserError
from engine.outputs.describe import INLINE, head_of, sniff
from persistence.artifacts import FolderStore, LinkSigner
from persistence.artifacts.folder import BadName
from web.http.app import refusal_response
from web.http.ranges import Part, failed, unchanged, wanted

CHUNK = 256 * 1024
MONTH = 30 * 24 * 3600
NOT_FOUND = UserError("not_found", "There is no such file. Fetch the task for its links.")
EXPIRED = UserError(
    "link_expired", "This link has expired. Fetch the task again for a new one, while its file is kept."
)
GONE = UserError("output_gone", "This file is not kept any more: its time is over, or its task was deleted.")
CHANGED = UserError("precondition_failed", "The file is not the one that If-Match names.")


def serve_folder(app: QuartTrio, store: FolderStore, signer: LinkSigner) -> None:
    """Adds the route under which `signer` makes its links."""

    async def artifact(name: str) -> Response:
        query = request.args
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not signer.genuine(name, expires, signature):
            return refusal_response(NOT_FOUND)
        if signer.expired(expires):
            return refusal_response(EXPIRED)
        try:
            file = await trio.to_thread.run_sync(_look, store.path(name))
        except (BadName, OSError):
            return refusal_response(GONE)
        return _answer(file, int(expires))

    app.add_url_rule("/artifacts/<path:name>", "artifact", artifact, methods=["GET"])


@frozen
class _File:
    path: Path
    size: int
    content_type: str

    @property
    def etag(self) -> str:
        return f'"{self.path.stem}"'


def _look(path: Path) -> _File:
    return _File(path, path.stat().st_size, sniff(head_of(path)).content_type)


def _answer(file: _File, expires: int) -> Response:
    headers = {name.lower(): value for name, value in request.headers.items()}
    if failed(headers, file.etag):
        return refusal_response(CHANGED)
    if unchanged(headers, file.etag):
        return _marked(Response(b"", 304), file, expires)
    part = wanted(headers, file.size, file.etag)
    if part is None:
        refused = refusal_response(UserError("range_not_satisfiable", f"The file has {file.size} bytes."))
        refused.headers["Content-Range"] = f"bytes */{file.size}"
        return refused
    # a HEAD has the same head, and Quart leaves the body away
    body = _read(file.path, part) if request.method == "GET" else b""
    answer = Response(body, 206 if part.partial else 200)
    answer.timeout = None  # a slow reader is the endpoint's affair, as with every other answer
    answer.content_length = part.length
    if part.partial:
        answer.headers["Content-Range"] = part.content_range
    return _marked(answer, file, expires)


def _marked(answer: Response, file: _File, expires: int) -> Response:
    """What a browser must know of it; `private`, for the link is somebody's."""
    shown = file.content_type in INLINE
    more = "; charset=utf-8" if file.content_type.startswith("text/") else ""
    disposition = "inline" if shown else "attachment"
    answer.headers.update(
        {
            "Content-Type": file.content_type + more,
            "Content-Disposition": f'{disposition}; filename="{file.path.name}"',
            "ETag": file.etag,
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": f"private, max-age={max(0, min(MONTH, expires - int(time.time())))}, immutable",
        }
    )
    return answer


async def _read(path: Path, part: Part) -> AsyncIterator[bytes]:
    """The part, a chunk at a time, read in a thread. A file that is deleted meanwhile is read to its end."""
    left = part.length
    async with await trio.open_file(path, "rb") as file:
        await file.seek(part.start)
        while left and (chunk := await file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
