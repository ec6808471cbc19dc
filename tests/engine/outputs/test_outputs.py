"""The way of an output, with a real file server on loopback and a real folder store."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
from PIL import Image

from engine.outputs import Cure, Limits, OutputRefused, Outputs, Policy
from engine.outputs.data_url import read_data_url
from engine.outputs.fetch import Fetcher
from engine.outputs.guard import check_url, is_public
from engine.providers.protocol import OutputReady
from engine.tasks.events import Output
from persistence.artifacts import FolderStore, LinkSigner


def png(width: int = 3, height: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * int(8000 * seconds))
    return file.getvalue()


class Files(BaseHTTPRequestHandler):
    """A provider's file server: contents by path, a redirect, an expired link, a body that breaks off."""

    contents: dict[str, bytes]
    redirects: dict[str, str]

    def do_GET(self) -> None:
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.end_headers()
        elif self.path == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        elif self.path in self.contents:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(self.contents[self.path])
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


class FileServer:
    def __init__(self) -> None:
        self.handler = type("Handler", (Files,), {"contents": {}, "redirects": {}})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.origin = f"127.0.0.1:{self.server.server_port}"

    def put(self, path: str, content: bytes) -> str:
        self.handler.contents[path] = content
        return f"http://{self.origin}{path}"

    def redirect(self, path: str, to: str) -> str:
        self.handler.redirects[path] = to
        return f"http://{self.origin}{path}"


@pytest.fixture
def files() -> Iterator[FileServer]:
    files = FileServer()
    thread = threading.Thread(target=files.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield files
    files.server.shutdown()
    files.server.server_close()
    thread.join()


@pytest.fixture
async def outputs(files: FileServer, tmp_path: Path) -> AsyncIterator[Outputs]:
    store = FolderStore(tmp_path / "kept", LinkSigner(b"k" * 32))
    fetcher = Fetcher(Policy(private=(files.origin,)), timeout=5)
    limits = Limits(max_bytes=200_000, max_outputs=4)
    outputs = Outputs(store, {"cog": fetcher}, tmp_path / "spool", limits)
    yield outputs
    await outputs.aclose()


async def keep(outputs: Outputs, event: OutputReady, task: UUID | None = None, attempt: UUID | None = None) -> Output:
    """The whole way of one output."""
    attempt = attempt or uuid4()
    spooled = await outputs.fetch("cog", attempt, event)
    return await outputs.keep(task or uuid4(), 1, attempt, spooled, 0.0)


async def test_an_image_is_fetched_measured_and_stored_under_its_final_name(
    outputs: Outputs, files: FileServer, tmp_path: Path
) -> None:
    content, task = png(3, 2), uuid4()
    kept = await keep(outputs, OutputReady(0, url=files.put("/a.png", content)), task)
    assert (kept.type, kept.format, kept.content_type) == ("image", "png", "image/png")
    assert kept.dimensions == {"width": 3, "height": 2}
    assert kept.sha256 == hashlib.sha256(content).hexdigest()
    assert kept.object_name == f"{task}/1/0/{kept.sha256}.png"
    stored = tmp_path / "kept" / kept.object_name
    assert stored.read_bytes() == content
    assert stored.stat().st_mode & 0o077 == 0, "it is for the server's own eyes"
    assert kept.content_url.startswith("/artifacts/")


async def test_storing_the_same_output_twice_after_a_crash_is_harmless(outputs: Outputs, files: FileServer) -> None:
    event, task = OutputReady(0, url=files.put("/a.png", png())), uuid4()
    first = await keep(outputs, event, task)
    second = await keep(outputs, event, task)
    assert (second.object_name, second.file_size_bytes) == (first.object_name, first.file_size_bytes)


async def test_sound_has_a_duration(outputs: Outputs) -> None:
    kept = await keep(outputs, OutputReady(0, data=wav(0.5), content_type="image/png"))
    assert (kept.type, kept.duration_seconds) == ("audio", 0.5)


@pytest.mark.parametrize(
    ("content", "type_", "content_type"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(64), "file", "application/x-executable"),
        (b"MZ" + bytes(64), "file", "application/x-msdownload"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "image", "image/svg+xml"),
        (b"<!DOCTYPE html><html><script>alert(1)</script></html>", "file", "text/html"),
        ("ein Wörtchen".encode(), "text", "text/plain"),
        (bytes(range(128, 200)) * 3, "file", "application/octet-stream"),
    ],
)
async def test_the_type_is_told_from_the_bytes_and_not_from_what_the_sender_says(
    outputs: Outputs, content: bytes, type_: str, content_type: str
) -> None:
    kept = await keep(outputs, OutputReady(0, data=content, content_type="image/png", name="x.png"))
    assert (kept.type, kept.content_type) == (type_, content_type)


async def test_a_picture_that_claims_a_billion_pixels_is_stored_without_being_unpacked(outputs: Outputs) -> None:
    content = bytearray(png())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    kept = await keep(outputs, OutputReady(0, data=bytes(content)))
    assert kept.content_type == "image/png"


async def test_an_output_over_the_limit_is_refused_while_it_arrives(outputs: Outputs, files: FileServer) -> None:
    url = files.put("/big", bytes(300_000))
    with pytest.raises(OutputRefused) as refused:
        await keep(outputs, OutputReady(0, url=url))
    assert (refused.value.code, refused.value.cure) == ("output_too_large", Cure.NONE)


@pytest.mark.parametrize(
    ("event", "code", "cure"),
    [
        (OutputReady(0), "bad_output", Cure.ANEW),
        (OutputReady(0, data=b""), "empty_output", Cure.ANEW),
        (OutputReady(4, data=b"x"), "too_many_outputs", Cure.NONE),
        (OutputReady(-1, data=b"x"), "too_many_outputs", Cure.NONE),
        (OutputReady(0, url="data:image/png;base64"), "bad_output", Cure.ANEW),
        (OutputReady(0, url="data:image/png;base64,!!!!"), "bad_output", Cure.ANEW),
        (OutputReady(0, url="https://replicate.delivery/x"), "forbidden_url", Cure.NONE),
        (OutputReady(0, url="http://169.254.169.254/latest/meta-data"), "forbidden_url", Cure.NONE),
        (OutputReady(0, url="file:///etc/passwd"), "forbidden_url", Cure.NONE),
    ],
)
async def test_a_bad_output_is_refused_with_its_code(
    outputs: Outputs, event: OutputReady, code: str, cure: Cure
) -> None:
    with pytest.raises(OutputRefused) as refused:
        await keep(outputs, event)
    assert (refused.value.code, refused.value.cure) == (code, cure)


async def test_a_broken_body_may_pass_and_an_expired_link_wants_a_fresh_one(
    outputs: Outputs, files: FileServer
) -> None:
    for path, code, cure in (("/gone", "output_expired", Cure.FRESH), ("/broken", "output_unavailable", Cure.WAIT)):
        with pytest.raises(OutputRefused) as refused:
            await keep(outputs, OutputReady(0, url=f"http://{files.origin}{path}"))
        assert (refused.value.code, refused.value.cure) == (code, cure)


async def test_a_redirect_is_followed_within_the_policy_and_refused_out_of_it(
    outputs: Outputs, files: FileServer
) -> None:
    good = files.redirect("/moved", files.put("/a.png", png()))
    assert (await keep(outputs, OutputReady(0, url=good))).type == "image"
    for bad in ("http://127.0.0.1:1/admin", "https://metadata.internal/", "//127.0.0.1:2/x", "/circle"):
        url = files.redirect("/circle", bad)
        with pytest.raises(OutputRefused) as refused:
            await keep(outputs, OutputReady(0, url=url))
        assert refused.value.code in ("forbidden_url", "too_many_redirects")


async def test_a_name_of_the_provider_that_resolves_to_a_private_address_is_not_connected_to(tmp_path: Path) -> None:
    fetcher = Fetcher(Policy(hosts=("localhost:9",)))
    with pytest.raises(OutputRefused, match="private network"):
        async with fetcher.open(OutputReady(0, url="https://localhost:9/x")):
            pass
    await fetcher.aclose()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
    ],
)
def test_only_addresses_of_the_world_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_host_must_be_the_providers_by_whole_labels() -> None:
    policy = Policy(hosts=("*.replicate.delivery", "api.example.com"))
    for good in ("https://replicate.delivery/x", "https://pbxt.replicate.delivery/x", "https://API.example.com./x"):
        check_url(good, policy)
    for bad in (
        "https://evilreplicate.delivery/",
        "https://replicate.delivery.evil.com/",
        "https://u:p@api.example.com",
    ):
        with pytest.raises(OutputRefused):
            check_url(bad, policy)


@pytest.mark.parametrize(
    ("url", "content_type", "data"),
    [
        ("data:text/plain;base64,aGk=", "text/plain", b"hi"),
        ("data:,a%20b", None, b"a b"),
        ("data:text/plain;charset=utf-8;base64,aG\nk", "text/plain", b"hi"),
        ("data:image/png;BASE64,aGlo", "image/png", b"hih"),
        ("data:;base64," + "aGlo" * 100_000, None, b"hih" * 100_000),
        ("data:," + "%41" * 100_000, None, b"A" * 100_000),
    ],
    ids=["base64", "percent", "white space, no padding", "capitals", "long base64", "long percent"],
)
def test_data_urls_are_decoded_slice_by_slice(url: str, content_type: str | None, data: bytes) -> None:
    read = read_data_url(url)
    assert (read.content_type, b"".join(read.slices())) == (content_type, data)


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:;base64,a", "data:;base64,aGk=aGk=", "data:;base64,ü"])
def test_a_malformed_data_url_is_refused_rather_than_guessed(url: str) -> None:
    with pytest.raises(OutputRefused):
        list(read_data_url(url).slices())


async def test_nothing_half_done_is_left_in_the_spool_and_what_is_spent_goes(outputs: Outputs, tmp_path: Path) -> None:
    attempt, spool = uuid4(), tmp_path / "spool"
    with pytest.raises(OutputRefused):
        await keep(outputs, OutputReady(0, data=b""), attempt=attempt)
    with trio.CancelScope() as scope:
        scope.cancel()
        await keep(outputs, OutputReady(0, data=b"hello"), attempt=attempt)
    assert not spool.exists() or [path for path in spool.rglob("*") if path.is_file()] == []
    await keep(outputs, OutputReady(0, data=b"hello"), attempt=attempt)
    assert sorted(path.name for path in (spool / str(attempt)).iterdir()) == ["0", "0.json"]
    await outputs.spool.discard(attempt)
    assert not (spool / str(attempt)).exists()
