"""A small, strict Google Cloud Storage: as much of its JSON API as outputs need, with generations, and its bad days.

Objects are written once a generation; preconditions are checked as the service does (412 conditionNotMet), resumable
uploads keep what they have and say how much (308), listings come in pages, V4 links are verified with the account's
public key. Each entry of `faults` is met once, by the next request whose line matches (an upload's line ends with its
object's name): a status to answer instead, or `lost` (done, but the answer never comes), `hang`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
from attrs import define, field
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ALGORITHM = "GOOG4-RSA-SHA256"


@define
class Object:
    content: bytes
    content_type: str
    disposition: str | None
    generation: int
    updated: datetime


@define
class Session:
    """A resumable upload under way."""

    about: dict[str, Any]
    match: str | None
    received: bytearray = field(factory=bytearray)


@define(eq=False)
class Service:
    """The service's memory. `objects` by name; all of one bucket, `bucket`."""

    url: str = ""
    key: rsa.RSAPublicKey | None = None
    objects: dict[str, Object] = field(factory=dict)
    sessions: dict[str, Session] = field(factory=dict)
    faults: deque[tuple[str, str]] = field(factory=deque)
    requests: list[str] = field(factory=list)
    page: int = 1000
    in_memory: int = 0
    """The largest body of one request so far."""
    released: threading.Event = field(factory=threading.Event)
    _generation: int = 1_700_000_000_000_000
    _lock: threading.Lock = field(factory=threading.Lock)

    def contents(self) -> dict[str, bytes]:
        return {name: each.content for name, each in self.objects.items()}

    def age(self, seconds: float) -> None:
        """As if all had been stored so long ago."""
        for each in self.objects.values():
            each.updated -= timedelta(seconds=seconds)

    def put(self, about: dict[str, Any], content: bytes, match: str | None) -> tuple[int, Any]:
        with self._lock:
            name = about["name"]
            if match == "0" and name in self.objects:
                return 412, _error(412, "At least one of the pre-conditions you specified did not hold.")
            if "crc32c" in about and about["crc32c"] != _crc32c(content):
                return 400, _error(400, "Provided CRC32C does not match.")
            self._generation += 1
            kind, disposition = about.get("contentType", "application/octet-stream"), about.get("contentDisposition")
            self.objects[name] = Object(content, kind, disposition, self._generation, datetime.now(UTC))
            return 200, self.view(name)

    def view(self, name: str) -> dict[str, Any]:
        found = self.objects[name]
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(found.content)),
            "generation": str(found.generation), "contentType": found.content_type,
            "crc32c": _crc32c(found.content), "updated": found.updated.isoformat().replace("+00:00", "Z"),
            "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(),
        }  # fmt: skip

    def listing(self, query: dict[str, str]) -> dict[str, Any]:
        after, prefix = query.get("pageToken", ""), query.get("prefix", "")
        names = [
            name
            for name in sorted(self.objects)
            if name.startswith(prefix) and name >= query.get("startOffset", "") and name > after
        ]
        count = min(int(query.get("maxResults", 1000)), self.page)
        more = {"nextPageToken": names[count - 1]} if len(names) > count else {}
        return {"kind": "storage#objects", "items": [self.view(name) for name in names[:count]], **more}


class Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def do_any(self) -> None:
        service = self.service
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = re.search(rb'"name": ?"([^"]+)"', body[:2000]) if self.command == "POST" else None
        line = f"{self.command} {self.path}{' ' + name[1].decode() if name else ''}"
        service.requests.append(line)
        service.in_memory = max(service.in_memory, len(body))
        fault = ""
        if service.faults and re.search(service.faults[0][0], line):
            fault = service.faults.popleft()[1]
        if fault == "hang":
            service.released.wait()
        if fault.isdigit():
            return self.answer(int(fault), _error(int(fault), "not now"))
        status, answer, headers = self.found(body)
        if fault == "lost":
            self.close_connection = True
            return self.connection.close()
        return self.answer(status, answer, headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_any

    def found(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        service, parts = self.service, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/upload/storage/v1/b/bucket/o":
            return self.upload(query, body)
        if parts.path == "/storage/v1/b/bucket":
            return 200, {"kind": "storage#bucket", "name": "bucket", "location": "EU"}, {}
        if parts.path == "/storage/v1/b/bucket/o":
            return 200, service.listing(query), {}
        if parts.path.startswith("/storage/v1/b/bucket/o/"):
            return self.one(unquote(parts.path.removeprefix("/storage/v1/b/bucket/o/")))
        if parts.path.startswith("/bucket/"):
            return self.signed(unquote(parts.path.removeprefix("/bucket/")), query)
        return 404, _error(404, "Not Found"), {}

    def one(self, name: str) -> tuple[int, Any, dict[str, str]]:
        if name not in self.service.objects:
            return 404, _error(404, f"No such object: bucket/{name}"), {}
        if self.command == "DELETE":
            del self.service.objects[name]
            return 204, None, {}
        return 200, self.service.view(name), {}

    # --- uploads

    def upload(self, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if query["uploadType"] == "multipart":
            about, content = _multipart(self.headers["Content-Type"], body)
            return *self.service.put(about, content, query.get("ifGenerationMatch")), {}
        if self.command == "POST":
            return self.initiated(query, json.loads(body))
        return self.continued(query["upload_id"], body)

    def initiated(self, query: dict[str, str], about: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if query.get("ifGenerationMatch") == "0" and about["name"] in self.service.objects:
            return 412, _error(412, "conditionNotMet"), {}
        about.setdefault("contentType", self.headers.get("X-Upload-Content-Type"))
        identifier = f"session-{len(self.service.sessions)}"
        self.service.sessions[identifier] = Session(about, query.get("ifGenerationMatch"))
        target = f"{self.service.url}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={identifier}"
        return 200, None, {"Location": target}

    def continued(self, identifier: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        session = self.service.sessions[identifier]
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        assert match
        first, _, total = match.groups()
        if first is not None:
            if int(first) > len(session.received):
                return 503, _error(503, "a gap"), {}
            session.received[int(first) :] = body
        if total == "*" or len(session.received) < int(total):
            known = {"Range": f"bytes=0-{len(session.received) - 1}"} if session.received else {}
            return 308, None, known
        name = session.about["name"]
        if name in self.service.objects and self.service.objects[name].content == bytes(session.received):
            return 200, self.service.view(name), {}  # it was completed, and the answer was lost
        return *self.service.put(session.about, bytes(session.received), session.match), {}

    # --- signed links (V4)

    def signed(self, name: str, query: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        if (why := self.refusal(query)) is not None:
            return 403, why, {}
        if name not in self.service.objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        found = self.service.objects[name]
        headers = {"Content-Type": found.content_type, "ETag": f'"{found.generation}"'}
        if found.disposition:
            headers["Content-Disposition"] = found.disposition
        return 200, found.content, headers

    def refusal(self, query: dict[str, str]) -> bytes | None:
        """Why a link is not honoured, if so; verified as Google documents it: the canonical request, hashed, signed."""
        if query.get("X-Goog-Algorithm") != ALGORITHM or self.service.key is None:
            return b"<Error><Code>AccessDenied</Code></Error>"
        at = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if time.time() > at.timestamp() + int(query["X-Goog-Expires"]):
            return b"<Error><Code>ExpiredToken</Code></Error>"
        parts = urlsplit(self.path)
        signed = sorted(each for each in parts.query.split("&") if not each.startswith("X-Goog-Signature="))
        headers = f"host:{self.headers['Host']}\n"
        path = quote(unquote(parts.path), safe="/~")
        canonical = "\n".join([self.command, path, "&".join(signed), headers, "host", "UNSIGNED-PAYLOAD"])
        scope = query["X-Goog-Credential"].partition("/")[2]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join([ALGORITHM, query["X-Goog-Date"], scope, digest])
        try:
            signature = bytes.fromhex(query["X-Goog-Signature"])
            self.service.key.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):
            return b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        return None

    # --- answers

    def answer(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _error(status: int, words: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": words, "errors": [{"reason": "fault", "message": words}]}}


def _crc32c(content: bytes) -> str:
    checksum: Any = google_crc32c.Checksum(content)
    return base64.b64encode(checksum.digest()).decode()


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    _, about, content, _ = body.split(b"--" + boundary)
    kind = re.search(rb"(?i)content-type: (\S+)", head := content.partition(b"\r\n\r\n")[0])
    described = json.loads(about.partition(b"\r\n\r\n")[2])
    described.setdefault("contentType", kind[1].decode() if kind else None)
    return described, content[len(head) + 4 :].removesuffix(b"\r\n")


@contextmanager
def serving() -> Iterator[Service]:
    """The service on a free port of loopback; ends with the block."""
    service = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"service": service}))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
