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
            source = tmp_path / "source"
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
            assert (await http.get(link, headers={"range": "bytes=9999-"})).status_code == 416
            again = await http.get(link, headers={"if-none-match": whole.headers["etag"]})
            assert again.status_code == 304

            active = await http.get(script)
            assert active.status_code == 200
            assert active.headers["content-disposition"].startswith("attachment")
            assert "sandbox" in active.headers["content-security-policy"]

            expired = LinkSigner(application.secret).link("t/1/0/a.png", -1)
            for bad in (expired, link[:-1] + "x", link.replace("a.png", "b.svg"), "/artifacts/t/1/0/a.png"):
                refused = await http.get(bad)
                assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
            for escape in ("../node", "t/../../node", "%2e%2e/node"):
                name = escape.replace("%2e", ".")
                assert (await http.get(LinkSigner(application.secret).link(name, 60))).status_code == 404


@pytest.mark.parametrize("base", ["/artifacts", "https://app.example/artifacts"])
def test_links_are_absolute_where_the_outside_address_is_known(base: str) -> None:
    assert LinkSigner(b"k" * 32, base).link("a b", 60).startswith(f"{base}/a%20b?expires=")
