"""The folder store and the bucket store keep the same promises; the bucket is the emulator's and a strict small one."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import google.auth.credentials
import httpx
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2.service_account import Credentials

from engine.ports import StoreFailed
from persistence.artifacts import FolderStore, LinkSigner, bucket
from persistence.artifacts.bucket import BucketStore
from persistence.artifacts.folder import BadName
from tests.persistence.artifacts import fake_gcs

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
    other = source.with_name("other")
    other.write_bytes(b"other")
    with pytest.raises(StoreFailed, match="taken"):
        await folder.put(NAME, other, "image/png")
    same = source.with_name("same")
    same.write_bytes(b"some bytes")
    assert (await folder.put(NAME, same, "image/png")).size == 10
    assert folder.path(NAME).read_bytes() == b"some bytes"


async def test_on_another_disk_a_file_is_copied_and_a_copy_cut_short_is_no_object(
    folder: FolderStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, refused = os.link, []

    def other_disk(of: Path, place: Path) -> None:
        if of == source:
            refused.append(of)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(of, place)

    monkeypatch.setattr(os, "link", other_disk)
    await folder.put(NAME, source, "image/png")
    assert (folder.path(NAME).read_bytes(), len(refused)) == (b"some bytes", 1)
    parts = tmp_path / "kept" / ".parts"
    assert list(parts.iterdir()) == []
    (parts / "half").write_bytes(b"so")
    assert [each.name for each in await folder.list("", 10)] == [NAME]
    await folder.tidy(time.time() - 60)
    assert list(parts.iterdir())
    await folder.tidy(time.time() + 60)
    assert list(parts.iterdir()) == []


async def test_objects_are_listed_by_name_page_by_page_and_deleted_by_the_folder(
    folder: FolderStore, source: Path
) -> None:
    names = sorted(
        f"{task}/{attempt}/0/{letter}.png" for task in ("t1", "t1x", "t2") for attempt in (1, 10, 2) for letter in "ab"
    )
    for name in names:
        await folder.put(name, source, "image/png")
    listed: list[str] = []
    while page := await folder.list(listed[-1] if listed else "", 4):
        assert len(page) <= 4
        listed += [each.name for each in page]
    assert listed == names
    assert all(abs(each.changed_at - time.time()) < 60 and each.size == 10 for each in await folder.list("", 99))
    await folder.delete("t1/")
    await folder.delete("nobody/")
    assert [each.name for each in await folder.list("", 99)] == [name for name in names if not name.startswith("t1/")]


async def test_deleting_removes_the_file_and_its_empty_folders_and_may_be_repeated(
    folder: FolderStore, source: Path, tmp_path: Path
) -> None:
    await folder.put(NAME, source, "image/png")
    await folder.delete(NAME)
    await folder.delete(NAME)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a/\x00", ".parts/x", "a/.", "a\n", "a" * 5000, "/"]
)
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
    assert signer.genuine(NAME, **query)
    assert not signer.expired(query["expires"])
    assert signer.expired(query["expires"], now=time.time() + 61)
    assert not signer.genuine("other", **query)
    assert not signer.genuine(NAME, str(int(query["expires"]) + 1), query["signature"])
    for forged in (query["signature"][:-1] + "?", query["signature"].upper(), "", "\ud800", "ü" * 64):
        assert not signer.genuine(NAME, query["expires"], forged)
    for when in ("soon", "", "-1", "+1", "١", "1" * 400, " 1"):
        assert not signer.genuine(NAME, when, query["signature"])


# --- Google Cloud Storage -----------------------------------------------------------------------------

LARGE = 20 * 1024 * 1024 + 17
"""Bytes: sent in three pieces."""


@pytest.fixture(scope="module")
def account() -> tuple[rsa.RSAPrivateKey, Credentials]:
    """A service account with a key of its own, that needs no token from anybody."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    info = {"client_email": "a@b.iam.gserviceaccount.com", "private_key": pem, "token_uri": "https://oauth2.example"}
    return key, Credentials.from_service_account_info(info)


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, account: tuple[rsa.RSAPrivateKey, Credentials]) -> Iterator[fake_gcs.Service]:
    # the pieces of an upload are sent again at once
    monkeypatch.setattr(bucket, "PIECES", DEFAULT_RETRY.with_delay(0.001, 0.01, 2.0).with_timeout(5.0))
    with fake_gcs.serving() as service:
        service.key = account[0].public_key()
        yield service


@pytest.fixture
def store(gcs: fake_gcs.Service) -> Iterator[BucketStore]:
    client = Client("project", AnonymousCredentials(), client_options={"api_endpoint": gcs.url})
    yield BucketStore(client, "bucket", prefix="outputs/")
    client.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1024) * (LARGE // 1024) + bytes(17))
    return path


async def test_an_upload_is_made_once_however_often_it_is_asked_for(
    store: BucketStore, gcs: fake_gcs.Service, source: Path
) -> None:
    for _ in range(2):
        assert (await store.put(NAME, source, "image/png")).size == 10
    assert gcs.contents() == {f"outputs/{NAME}": b"some bytes"}
    (generation,) = {each.generation for each in gcs.objects.values()}
    assert generation == 1_700_000_000_000_001, "the object was written once"


@pytest.mark.parametrize("other", [b"not the same", b"some bytez"], ids=["another size", "the same size"])
async def test_a_name_taken_by_something_else_is_a_failure_and_stays_as_it_was(
    store: BucketStore, gcs: fake_gcs.Service, source: Path, other: bytes
) -> None:
    gcs.put({"name": f"outputs/{NAME}"}, other, None)
    with pytest.raises(StoreFailed, match="taken"):
        await store.put(NAME, source, "image/png")
    assert gcs.contents() == {f"outputs/{NAME}": other}


async def test_an_upload_whose_answer_is_lost_fails_and_the_next_try_finds_it_done(
    store: BucketStore, gcs: fake_gcs.Service, source: Path
) -> None:
    gcs.faults.append(("^POST", "lost"))
    with pytest.raises(StoreFailed):
        await store.put(NAME, source, "image/png")
    await store.put(NAME, source, "image/png")
    assert gcs.contents() == {f"outputs/{NAME}": b"some bytes"}


@pytest.mark.parametrize("status", ["403", "429", "500", "503"])
async def test_a_refusal_is_reported_after_one_try_for_who_stores_asks_again(
    store: BucketStore, gcs: fake_gcs.Service, source: Path, status: str
) -> None:
    gcs.faults.append(("^POST", status))
    with pytest.raises(StoreFailed, match="Google Cloud Storage"):
        await store.put(NAME, source, "image/png")
    assert len([line for line in gcs.requests if line.startswith("POST")]) == 1
    assert gcs.objects == {}


@pytest.mark.parametrize("fault", ["", "503", "lost"])
async def test_a_large_file_goes_in_pieces_and_only_a_piece_is_sent_again(
    store: BucketStore, gcs: fake_gcs.Service, large: Path, fault: str
) -> None:
    if fault:
        gcs.faults.append(("^PUT", fault))
    assert (await store.put(NAME, large, "video/mp4")).size == LARGE
    assert gcs.contents() == {f"outputs/{NAME}": large.read_bytes()}
    assert len(gcs.sessions) == 1
    assert gcs.in_memory <= bucket.PIECE
    await store.put(NAME, large, "video/mp4")
    assert len(gcs.objects) == 1


async def test_the_lost_end_of_a_large_upload_is_found_done(
    store: BucketStore, gcs: fake_gcs.Service, large: Path
) -> None:
    gcs.faults += [("^PUT", "none"), ("^PUT", "none"), ("^PUT", "lost")]
    await store.put(NAME, large, "video/mp4")
    assert gcs.contents() == {f"outputs/{NAME}": large.read_bytes()}


async def test_an_upload_that_hangs_is_left_and_its_place_is_free_again_when_it_ends(
    gcs: fake_gcs.Service, source: Path
) -> None:
    client = Client("project", AnonymousCredentials(), client_options={"api_endpoint": gcs.url})
    store = BucketStore(client, "bucket", threads=1)
    gcs.faults.append(("^POST", "hang"))
    with trio.move_on_after(0.2) as scope:
        await store.put("a", source, "image/png")
    assert scope.cancelled_caught
    await store.url("a", 60)  # small calls have places of their own
    gcs.released.set()
    with trio.fail_after(10):
        await store.put("b", source, "image/png")
    assert sorted(gcs.contents()) == ["a", "b"], (
        "what was left has ended all the same, and is swept when nobody wants it"
    )
    client.close()


async def test_objects_of_the_bucket_are_listed_in_pages_and_deleted_by_the_folder(
    store: BucketStore, gcs: fake_gcs.Service, source: Path
) -> None:
    names = [f"t{task}/1/{index}/x.png" for task in range(3) for index in range(4)]
    for name in names:
        await store.put(name, source, "image/png")
    gcs.put({"name": "elsewhere/x"}, b"", None)
    gcs.page = 3
    listed: list[str] = []
    while page := await store.list(listed[-1] if listed else "", 5):
        listed += [each.name for each in page]
    assert listed == names
    await store.delete("t1/")
    await store.delete("t0/1/0/x.png")
    await store.delete("t0/1/0/x.png")
    left = [each.name for each in await store.list("", 99)]
    assert left == [name for name in names if not name.startswith("t1/") and name != "t0/1/0/x.png"]
    gcs.faults.append(("^GET", "503"))
    with pytest.raises(StoreFailed):
        await store.list("", 5)


async def test_a_link_is_honoured_until_it_expires_and_for_its_object_alone(
    gcs: fake_gcs.Service, account: tuple[rsa.RSAPrivateKey, Credentials], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    writer = BucketStore(Client("project", AnonymousCredentials()), "bucket")
    await writer.put("a b/ü.png", source, "image/png")
    await writer.put("page.html", source, "text/html")
    signer = BucketStore(Client("project", account[1], client_options={"api_endpoint": gcs.url}), "bucket")
    link, page = await signer.url("a b/ü.png", 60), await signer.url("page.html", 60)
    async with httpx.AsyncClient(trust_env=False) as http:
        good = await http.get(link)
        assert (good.status_code, good.content, good.headers["content-type"]) == (200, b"some bytes", "image/png")
        assert (await http.get(page)).headers["content-disposition"] == "attachment"
        assert "content-disposition" not in good.headers
        for bad in (
            link.replace("X-Goog-Expires=60", "X-Goog-Expires=6000"),
            link.replace("%C3%BC.png", "page.html"),
            link[:-4] + ("0000" if link[-4:] != "0000" else "1111"),
            link.partition("?")[0],
        ):
            assert (await http.get(bad)).status_code == 403
        assert b"ExpiredToken" in (await http.get(await signer.url("page.html", -5))).content
    query = parse_qs(urlsplit(await signer.url(NAME, 30 * 24 * 3600)).query)
    assert (query["X-Goog-Algorithm"], query["X-Goog-Expires"]) == (["GOOG4-RSA-SHA256"], ["604800"])


class OnTheMachine(google.auth.credentials.Credentials):
    """What a machine of Google's has: no key, a token that must be fetched, and a service that signs."""

    service_account_email = "vm@project.iam.gserviceaccount.com"

    def __init__(self) -> None:
        super().__init__()
        self.refreshes = 0

    def refresh(self, request: object) -> None:
        self.refreshes += 1
        time.sleep(0.05)  # the metadata server takes its time; everybody waits for this one
        self.token = "token"
        self.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)


async def test_many_who_sign_at_once_fetch_one_token(gcs: fake_gcs.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = OnTheMachine()
    store = BucketStore(Client("project", credentials, client_options={"api_endpoint": gcs.url}), "bucket")
    monkeypatch.setattr(store, "_signed", lambda blob, seconds, **signer: signer["access_token"])
    tokens: list[str] = []

    async def sign() -> None:
        tokens.append(await store.url(NAME, 60))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(sign)
    assert (tokens, credentials.refreshes) == (["token"] * 20, 1)


async def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    """200 MB through fetcher, spool and bucket, in a process of their own whose memory is looked at."""
    done = await trio.run_process(
        [sys.executable, "-m", "tests.persistence.artifacts.large_file", str(tmp_path)], capture_stdout=True
    )
    figures = json.loads(done.stdout)
    assert figures["stored"] == figures["size"] == 200 * 1024 * 1024
    assert figures["grown"] < 40 * 1024 * 1024, f"it took {figures['grown'] / 2**20:.0f} MB"


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
        assert [(each.name, each.size) for each in await store.list("", 10)] == [(NAME, 10)]
        await store.delete(NAME)
        await store.delete(NAME)
        assert not blob.exists()
        client.close()
    finally:
        server.stop()
