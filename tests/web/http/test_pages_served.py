"""The pages as a browser gets them: types, caching, policy."""

from __future__ import annotations

import re

import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/operators", "/docs/problems"])
def test_a_page_is_revalidated_and_strict(nobody: httpx.Client, path: str) -> None:
    page = nobody.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    again = nobody.get(path, headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_file_of_a_page_is_cached_for_ever_under_its_version(nobody: httpx.Client) -> None:
    page = nobody.get("/").text
    names = re.findall(r'"(/static/[^"#]+)', page)
    assert len(names) >= 3
    for name in names:
        file = nobody.get(name)
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"


def test_a_file_under_another_version_is_not_cached(nobody: httpx.Client) -> None:
    assert nobody.get("/static/older/main.js").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2f__init__.py", "files.py"])
def test_what_is_no_file_of_the_pages_is_not_found(nobody: httpx.Client, name: str) -> None:
    assert nobody.get(f"/static/x/{name}").status_code == 404


def test_files_are_compressed_for_who_takes_it_so(nobody: httpx.Client) -> None:
    path = re.findall(r'"(/static/[^"#]+\.css)', nobody.get("/").text)[0]
    packed = nobody.get(path, headers={"Accept-Encoding": "gzip"})
    plain = nobody.get(path, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text


def test_a_problem_points_to_what_it_means(nobody: httpx.Client) -> None:
    problem = nobody.get("/nowhere").json()
    page, _, code = problem["type"].partition("#")
    assert f'id="{code}"' in nobody.get(page).text
