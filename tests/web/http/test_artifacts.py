"""Outputs in a folder, fetched over HTTP by signed links: ranges, expiry, forgery, and what may be shown in place."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from persistence.artifacts import FolderStore, LinkSigner
from tests.real.conftest import data_dir as data_dir
from web.serve import running
from web.settings import Settings

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


async def test_a_signed_link_serves_the_file_and_nothing_else_does(data_dir: Path, tmp_path: Path) -> None:
    async with running(Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0)) as application:
        store = application.runtime.artifacts
        assert isinstance(store, FolderStore)
        for name, content in (("t/1/0/a.png", PNG), ("t/1/1/b.svg", SVG)):
            source = tmp_path / name.replace("/", "-")  # the store may take the very file over
            source.write_bytes(content)
            await store.put(name, source, "application/octet-stream")
        link, script = await store.url("t/1/0/a.png", 60), await store.url("t/1/1/b.svg", 60)
        async with httpx.AsyncClient(base_url=application.endpoint.urls[0], trust_env=False) as http:
            whole = await http.get(link)
            assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, PNG, "image/png")
            assert whole.headers["x-content-type-options"] == "nosniff"
            assert "attachment" not in whole.headers.get("content-disposition", "")

            part = await http.get(link, headers={"range": "bytes=2-5"})
            assert (part.status_code, part.content) == (206, PNG[2:6])
            assert part.headers["content-range"] == f"bytes 2-5/{len(PNG)}"
            again = await http.get(link, headers={"if-none-match": whole.headers["etag"]})
            assert again.status_code == 304

            active = await http.get(script)
            assert active.status_code == 200
            assert active.headers["content-disposition"].startswith("attachment")
            assert "sandbox" in active.headers["content-security-policy"]

            forged = LinkSigner(b"x" * 32).link("t/1/0/a.png", -1)
            for bad in (forged, link[:-1] + "x", link.replace("a.png", "b.svg"), "/artifacts/t/1/0/a.png"):
                refused = await http.get(bad)
                assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
            signer = LinkSigner(application.secret)
            old, gone = signer.link("t/1/0/a.png", -1), signer.link("t/1/0/gone.png", 60)
            for dead, code in ((old, "link_expired"), (gone, "output_gone")):
                refused = await http.get(dead)
                assert (refused.status_code, refused.json()["code"]) == (410, code)
            for escape in ("../node", "t/../../node", "%2e%2e/node"):
                name = escape.replace("%2e", ".")
                assert (await http.get(signer.link(name, 60))).status_code in (404, 410)


async def test_parts_and_conditions_are_answered_as_http_has_it(data_dir: Path, tmp_path: Path) -> None:
    async with running(Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0)) as application:
        store, source = application.runtime.artifacts, tmp_path / "source"
        source.write_bytes(PNG)
        await store.put("t/1/0/a.png", source, "image/png")
        link = await store.url("t/1/0/a.png", 60)
        async with httpx.AsyncClient(base_url=application.endpoint.urls[0], trust_env=False) as http:

            async def ask(method: str = "GET", **headers: str) -> httpx.Response:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await http.request(method, link, headers=named)

            etag, size = (await ask()).headers["etag"], len(PNG)
            for wish, start, stop in (
                ("bytes=0-0", 0, 1), ("bytes=5-", 5, size), ("bytes=-3", size - 3, size),
                ("bytes=-99999", 0, size), ("bytes=1000-99999", 1000, size),
            ):  # fmt: skip
                part = await ask(range=wish)
                assert (part.status_code, part.content) == (206, PNG[start:stop])
                assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
                assert part.headers["content-length"] == str(stop - start)
            for void in ("bytes=0-1,3-4", "bytes=5-2", "items=0-1", "bytes=a-b", "bytes=", "bytes=-"):
                whole = await ask(range=void)
                assert (whole.status_code, whole.content) == (200, PNG)
            for beyond in ("bytes=99999-", f"bytes={size}-", "bytes=-0"):
                refused = await ask(range=beyond)
                assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
            assert (await ask(range="bytes=0-1", if_range=etag)).status_code == 206
            assert (await ask(range="bytes=0-1", if_range='"another"')).status_code == 200
            assert (await ask(if_none_match=f'"x", W/{etag}')).status_code == 304
            assert (await ask(if_none_match='"x"')).status_code == 200
            assert (await ask(if_match='"x"')).status_code == 412
            assert (await ask(if_match=etag)).status_code == 200
            head = await ask("HEAD")
            assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
            head = await ask("HEAD", range="bytes=0-9")
            assert (head.status_code, head.headers["content-length"], head.content) == (206, "10", b"")
            assert (await ask("POST")).status_code == 405


@pytest.mark.parametrize("base", ["/artifacts", "https://app.example/artifacts"])
def test_links_are_absolute_where_the_outside_address_is_known(base: str) -> None:
    assert LinkSigner(b"k" * 32, base).link("a b", 60).startswith(f"{base}/a%20b?expires=")
