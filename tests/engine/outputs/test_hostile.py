"""What a provider's answer could do to us: hosts that are not what they seem, bytes that are more than they seem."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import define, field
from PIL import Image

from engine.outputs import Cure, Limits, OutputRefused, Outputs, Policy
from engine.outputs.describe import Description, measure_image, sniff
from engine.outputs.fetch import Fetcher
from engine.outputs.guard import GuardedBackend, check_url, is_public
from engine.outputs.probe import probe
from engine.providers.protocol import OutputReady
from persistence.artifacts import FolderStore, LinkSigner
from tests.real import file_server
from tests.real.file_server import Files, cut_off, held, status, streamed, whole

# --- where it points ----------------------------------------------------------------------------------------

ANYWHERE = Policy(hosts=("*",))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "[::1]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]", "169.254.169.254", "10.0.0.1",
        "[fd00::1]", "224.0.0.1", "255.255.255.255", "100.64.0.1",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    fetcher = Fetcher(ANYWHERE)
    with pytest.raises(OutputRefused) as refused:
        async with fetcher.open(OutputReady(0, url=f"https://{host}/x")):
            pass
    assert (refused.value.code, refused.value.cure) == ("forbidden_url", Cure.NONE)
    await fetcher.aclose()


@pytest.mark.parametrize("address", ["64:ff9b::7f00:1", "64:ff9b::a00:1", "::ffff:10.0.0.1", "2001::1"])
def test_addresses_inside_addresses_are_looked_at(address: str) -> None:
    assert not is_public(address)


REPLICATE = Policy(hosts=("*.replicate.delivery",), private=("127.0.0.1:5000",))


@pytest.mark.parametrize(
    "url",
    [
        "https://replicate.delivery@evil.example/x", "https://a:b@replicate.delivery/x", "https://@replicate.delivery/",
        "https://replicate.delivery:22/x", "https://replicate.delivery\\@evil.example/x", "https://evil.example#@replicate.delivery",
        "https://evil.example?.replicate.delivery", "https://replicate.delivery.evil.example/", "https:///x", "https:x",
        "http://replicate.delivery/x", "file:///etc/passwd", "gopher://127.0.0.1:5000/x", "ftp://127.0.0.1:5000/",
        "http://127.0.0.1:5001/", "http://x@127.0.0.1:5000/", "https://replicate。delivery.evil/x", "https://[::1/x",
        "https://replicate.delivery:99999/", "https://replicate.delivery/" + "x" * 9000, "", " ", "javascript:alert(1)",
        "https://replicate\u202e.delivery/x", "https://\x00replicate.delivery/", "https://replicate.delivery%2eevil/",
    ],
)  # fmt: skip
def test_a_url_that_only_looks_like_the_providers_is_refused(url: str) -> None:
    with pytest.raises(OutputRefused) as refused:
        check_url(url, REPLICATE)
    assert refused.value.code == "forbidden_url"


@pytest.mark.parametrize(
    "url", ["https://x.replicate.delivery/a/../b", "https://replicate.delivery:443/ü \u202ename\x00\r\nHost: x", "http://127.0.0.1:5000/x"]
)  # fmt: skip
def test_a_strange_name_of_the_providers_own_is_asked_for_in_plain_ascii(url: str) -> None:
    parts = check_url(url, REPLICATE)
    assert parts.geturl().isascii()
    assert parts.geturl().isprintable()
    assert " " not in parts.geturl()


@define
class Wires:
    """A network backend that only notes where it was to connect."""

    asked: list[str] = field(factory=list)

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        raise OSError("no network here")


@define
class Rebinding(trio.abc.HostnameResolver):
    """A name server that answers differently the second time."""

    answers: list[str]
    asked: int = 0

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        address = self.answers[min(self.asked, len(self.answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


async def test_a_name_is_looked_up_once_and_the_checked_address_connected_to() -> None:
    resolver, wires, backend = Rebinding(["93.184.216.34", "127.0.0.1"]), Wires(), GuardedBackend(ANYWHERE)
    backend._inner = wires  # type: ignore[assignment]
    trio.socket.set_custom_hostname_resolver(resolver)
    with pytest.raises(OSError, match="no network"):
        await backend.connect_tcp("rebinding.example", 443)
    assert (resolver.asked, wires.asked) == (1, ["93.184.216.34"])
    with pytest.raises(OutputRefused):
        await backend.connect_tcp("rebinding.example", 443)
    assert len(wires.asked) == 1


# --- what it sends ----------------------------------------------------------------------------------------


@asynccontextmanager
async def studio(tmp_path: Path, **limits: Any) -> AsyncIterator[tuple[Outputs, Files]]:
    async with file_server.serving() as files:
        fetcher = Fetcher(Policy(private=(files.origin,)), timeout=5)
        store = FolderStore(tmp_path / "kept", LinkSigner(b"k" * 32))
        outputs = Outputs(store, {"cog": fetcher}, tmp_path / "spool", Limits(**{"max_bytes": 100_000} | limits))
        yield outputs, files
        await outputs.aclose()


async def refusal(outputs: Outputs, url: str) -> OutputRefused:
    with pytest.raises(OutputRefused) as refused:
        await outputs.fetch("cog", uuid4(), OutputReady(0, url=url))
    return refused.value


def bomb(size: int) -> bytes:
    return gzip.compress(bytes(size))


async def test_files_that_are_more_than_they_say_end_at_the_limit(tmp_path: Path) -> None:
    async with studio(tmp_path) as (outputs, files):
        for path, answer in {
            "/no-length": streamed(bytes(10_000), times=50),
            "/length": whole(bytes(200_000)),
            "/bomb": whole(bomb(50_000_000), content_encoding="gzip"),
            "/bomb-in-pieces": streamed(bomb(50_000_000), content_encoding="gzip"),
        }.items():
            assert (await refusal(outputs, files.give(path, answer))).code == "output_too_large"
        assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []


async def test_what_is_compressed_against_our_wish_is_stored_as_it_is_meant(tmp_path: Path) -> None:
    async with studio(tmp_path) as (outputs, files):
        for name, packed in (("gzip", gzip.compress(b"a text")), ("deflate", zlib.compress(b"a text"))):
            url = files.give(f"/{name}", whole(packed, content_encoding=name))
            spooled = await outputs.fetch("cog", uuid4(), OutputReady(0, url=url))
            assert (spooled.size, spooled.description.content_type) == (6, "text/plain")
        for broken in (
            whole(b"no gzip", content_encoding="gzip"),
            whole(bomb(9999)[:-20], content_encoding="gzip"),
            whole(b"x", content_encoding="br"),
        ):
            refused = await refusal(outputs, files.give("/broken", broken))
            assert (refused.code, refused.cure) == ("output_unavailable", Cure.WAIT)


async def test_who_sends_slowly_or_less_than_promised_is_not_waited_for(tmp_path: Path) -> None:
    async with studio(tmp_path, fetch_seconds=0.3) as (outputs, files):
        for path, answer in {"/slow": held(files, b"x" * 100), "/short": cut_off(b"half", 100)}.items():
            refused = await refusal(outputs, files.give(path, answer))
            assert (refused.code, refused.cure) == ("output_unavailable", Cure.WAIT)


async def test_redirects_are_checked_like_the_first_url_and_end(tmp_path: Path) -> None:
    async with studio(tmp_path) as (outputs, files):
        for target, code in {
            "/loop": "too_many_redirects",
            "http://169.254.169.254/latest/meta-data": "forbidden_url",
            "https://[::1]/": "forbidden_url",
            "file:///etc/passwd": "forbidden_url",
            "//evil.example/x": "forbidden_url",
            f"http://user@{files.origin}/x": "forbidden_url",
        }.items():
            assert (await refusal(outputs, files.give("/loop", status(302, location=target)))).code == code
        asked = len(files.asked)
        await refusal(outputs, files.give("/loop", status(302, location="/loop")))
        assert len(files.asked) - asked == 6


# --- what it is -------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


def header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF", "TIFF"])
def test_pictures_are_measured_by_their_headers(tmp_path: Path, form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (37, 23), "teal").save(file, form)
    (tmp_path / "file").write_bytes(file.getvalue())
    found = measure_image(tmp_path / "file", sniff(file.getvalue()))
    assert (found.type, found.dimensions) == ("image", {"width": 37, "height": 23})


@pytest.mark.parametrize(
    ("content", "dimensions"),
    [
        (header(60_000, 60_000), {"width": 60_000, "height": 60_000}),
        (header(0, 0), None),
        (header(0xFFFFFFFF, 1), None),
        (PNG, None),
        (PNG + b"\x00\x00\x00\x0dIHDR", None),
        (b"\xff\xd8\xff" + b"\xff" * 500_000, None),
        (b"\xff\xd8\xff\xe1\x00\x02" * 100_000, None),
        (b"RIFF\xff\xff\xff\xffWEBPVP8X", None),
        (b"II*\x00\xff\xff\xff\xff", None),
        (b"GIF89a", None),
        (b"\x00\x00\x00\x18ftypavif" + b"\x00" * 100_000, None),
    ],
    ids=["big", "none", "huge", "cut", "later", "marker", "segments", "webp", "tiff", "gif", "avif"],
)
async def test_a_picture_made_to_hurt_costs_a_moment_and_nothing_more(
    tmp_path: Path, content: bytes, dimensions: dict[str, int] | None
) -> None:
    (tmp_path / "file").write_bytes(content)
    found = Description("image", "png", "image/png")
    with trio.fail_after(5):
        measured = await trio.to_thread.run_sync(measure_image, tmp_path / "file", found)
    assert measured.dimensions == dimensions


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x00\x00\x20ftypisom" + b"\xff" * 50_000,
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom\xff\xff\xff\xffmoov" + bytes(1000),
        b"\x1aE\xdf\xa3" + b"\xff" * 50_000,
        b"RIFF\xff\xff\xff\xffAVI LIST" + b"\xff" * 1000,
        b"",
    ],
    ids=["mp4", "moov", "webm", "avi", "empty"],
)
async def test_a_film_made_to_hurt_is_looked_at_by_a_child_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with trio.fail_after(20):
        assert "width" not in await probe(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "content_type", "inline"),
    [
        (b"GIF89a/*<html><script>alert(1)</script>*/=1;", "image/gif", True),
        (b"<!-- --><html><script>alert(1)</script>", "text/html", False),
        (b"\xef\xbb\xbf  <SVG xmlns='x' onload='alert(1)'/>", "image/svg+xml", False),
        (b"<?xml version='1.0'?><x/>", "application/xml", False),
        (b"%PDF-1.7 /JavaScript", "application/pdf", False),
        (b"PK\x03\x04" + bytes(40), "application/zip", False),
        (b"\x7fELF" + bytes(60), "application/x-executable", False),
        (b"#!/bin/sh\nrm -rf /\n", "text/plain", True),
        (b"\xff\xfe<\x00s\x00c\x00r\x00i\x00p\x00t\x00>\x00", "application/octet-stream", False),
    ],
)
def test_only_what_a_browser_cannot_run_is_shown_in_place(content: bytes, content_type: str, inline: bool) -> None:
    found = sniff(content)
    assert (found.content_type, found.inline) == (content_type, inline)
