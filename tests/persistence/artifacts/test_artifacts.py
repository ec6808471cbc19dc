"""The folder store and the bucket store keep the same promises; the bucket is the emulator's and a strict small one."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from engine.ports import StoreFailed
from persistence.artifacts import FolderStore, LinkSigner
from persistence.artifacts.bucket import BucketStore
from persistence.artifacts.folder import BadName

NAME = "task/1/0/abc.png"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"some bytes")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "kept", LinkSigner(b"k" * 32))


async def test_a_stored_file_is_there_whole_under_its_name(folder: FolderStore, source: Path) -> None:
    kept = await folder.put(NAME, source, "image/png")
    assert (kept.name, kept.size, kept.content_type) == (NAME, 10, "image/png")
    assert folder.path(NAME).read_bytes() == b"some bytes"
    assert [entry.name for entry in folder.path(NAME).parent.iterdir()] == ["abc.png"]


async def test_the_content_of_a_name_never_changes(folder: FolderStore, source: Path) -> None:
    await folder.put(NAME, source, "image/png")
    source.write_bytes(b"other")
    assert (await folder.put(NAME, source, "image/png")).size == 10
    assert folder.path(NAME).read_bytes() == b"some bytes"


async def test_deleting_removes_the_file_and_its_empty_folders_and_may_be_repeated(
    folder: FolderStore, source: Path, tmp_path: Path
) -> None:
    await folder.put(NAME, source, "image/png")
    await folder.delete(NAME)
    await folder.delete(NAME)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a/\x00", ".part-x", "a/."])
def test_no_name_leads_out_of_the_folder(folder: FolderStore, name: str) -> None:
    with pytest.raises(BadName):
        folder.path(name)


async def test_a_store_that_cannot_write_says_so(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreFailed):
        await FolderStore(tmp_path / "file", LinkSigner(b"k" * 32)).put(NAME, source, "image/png")


async def test_a_link_is_valid_until_it_expires_and_for_its_name_alone(folder: FolderStore) -> None:
    link = urlsplit(await folder.url(NAME, 60))
    query = {key: values[0] for key, values in parse_qs(link.query).items()}
    signer = LinkSigner(b"k" * 32)
    assert unquote(link.path) == f"/artifacts/{NAME}"
    assert signer.valid(NAME, **query)
    assert not signer.valid("other", **query)
    assert not signer.valid(NAME, query["expires"], query["signature"][:-1] + "?")
    assert not signer.valid(NAME, str(int(query["expires"]) + 1), query["signature"])
    assert not signer.valid(NAME, **query, now=time.time() + 61)
    assert not signer.valid(NAME, "soon", query["signature"])


# --- Google Cloud Storage -----------------------------------------------------------------------------


class Bucket(BaseHTTPRequestHandler):
    """As much of the JSON API as an upload needs, with what the emulator leaves out: generation preconditions."""

    objects: dict[str, bytes]
    failing: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        assert parts.path == "/upload/storage/v1/b/bucket/o"
        assert query["uploadType"] == ["multipart"]
        described, content = _multipart(self.headers["Content-Type"], body)
        if self.failing:
            return self._answer(self.failing.pop(), {"error": {"message": "not now"}})
        if query.get("ifGenerationMatch") == ["0"] and described["name"] in self.objects:
            return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self.objects[described["name"]] = content
        return self._answer(200, self._resource(described["name"]))

    def do_GET(self) -> None:
        self._answer(200, self._resource(unquote(urlsplit(self.path).path.rpartition("/o/")[2])))

    def _resource(self, name: str) -> dict[str, str]:
        return {"name": name, "size": str(len(self.objects[name])), "generation": "1"}

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, str], bytes]:
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    described, content = message.get_payload()
    return json.loads(described.get_payload()), content.get_payload(decode=True)


@pytest.fixture
def strict() -> Iterator[tuple[BucketStore, type[Bucket]]]:
    handler = type("Handler", (Bucket,), {"objects": {}, "failing": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = {"api_endpoint": f"http://127.0.0.1:{server.server_port}"}
    client = Client("project", AnonymousCredentials(), client_options=endpoint)
    yield BucketStore(client, "bucket"), handler
    client.close()
    server.shutdown()
    server.server_close()
    thread.join()


async def test_an_upload_is_made_once_however_often_it_is_asked_for(
    strict: tuple[BucketStore, type[Bucket]], source: Path
) -> None:
    store, bucket = strict
    assert (await store.put(NAME, source, "image/png")).size == 10
    assert (await store.put(NAME, source, "image/png")).size == 10
    assert bucket.objects == {NAME: b"some bytes"}


async def test_a_name_taken_by_something_else_is_a_failure_and_stays_as_it_was(
    strict: tuple[BucketStore, type[Bucket]], source: Path
) -> None:
    store, bucket = strict
    bucket.objects[NAME] = b"not the same"
    with pytest.raises(StoreFailed, match="taken"):
        await store.put(NAME, source, "image/png")
    assert bucket.objects == {NAME: b"not the same"}


async def test_a_passing_error_of_the_service_is_tried_again_and_a_refusal_is_reported(
    strict: tuple[BucketStore, type[Bucket]], source: Path
) -> None:
    store, bucket = strict
    bucket.failing[:] = [503]
    await store.put(NAME, source, "image/png")
    bucket.failing[:] = [403]
    with pytest.raises(StoreFailed):
        await store.put("other/name", source, "image/png")
    assert list(bucket.objects) == [NAME]


async def test_the_emulator_takes_uploads_and_gives_them_back(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    server = server_module.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        port = server._api._httpd.socket.getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        client = Client("project", AnonymousCredentials())
        store = BucketStore(client, "bucket", prefix="outputs/")
        assert (await store.put(NAME, source, "text/html")).size == 10
        blob = client.bucket("bucket").blob(f"outputs/{NAME}")
        assert blob.download_as_bytes() == b"some bytes"
        await store.delete(NAME)
        await store.delete(NAME)
        assert not blob.exists()
        client.close()
    finally:
        server.stop()


async def test_links_are_signed_offline_with_a_service_accounts_key() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from google.oauth2.service_account import Credentials

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    info = {"client_email": "a@b.iam.gserviceaccount.com", "private_key": pem, "token_uri": "https://oauth2.example"}
    store = BucketStore(Client("project", Credentials.from_service_account_info(info)), "bucket")
    query = parse_qs(urlsplit(await store.url(NAME, 30 * 24 * 3600)).query)
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
    assert query["X-Goog-Expires"] == ["604800"]
    assert len(base64.b16decode(query["X-Goog-Signature"][0].upper())) == 256
