"""The pages' files: cached for ever under their version, strict about what a page may load."""

from __future__ import annotations

import gzip
import re

import pytest

from web.pages import files
from web.pages.routes import POLICY

SITE = files.load()


def test_pages_name_their_files_under_the_version() -> None:
    page = SITE.files["index.html"].body.decode()
    assert f"/static/{SITE.version}/main.js" in page
    assert "{{" not in page


@pytest.mark.parametrize("name", [name for name in SITE.files if name.endswith(".html")])
def test_a_page_has_no_script_or_style_of_its_own_and_loads_nothing_from_elsewhere(name: str) -> None:
    page = SITE.files[name].body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)


@pytest.mark.parametrize("name", [name for name in SITE.files if name.endswith((".js", ".css"))])
def test_every_import_of_a_module_is_there(name: str) -> None:
    source = SITE.files[name].body.decode()
    imported = re.findall(r"from \"\./([^\"]+)\"|@import \"([^\"]+)\"", source)
    assert all(module in SITE.files for pair in imported for module in pair if module)
    assert not re.search(r"https?://(?!www\.w3\.org)", source)


def test_the_policy_allows_no_inline_code() -> None:
    assert "unsafe" not in POLICY
    assert "script-src 'self'" in POLICY


def test_the_compressed_twin_is_the_same_file() -> None:
    assert all(gzip.decompress(file.compressed) == file.body for file in SITE.files.values())
