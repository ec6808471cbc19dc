"""Reading bodies and queries: every fault is named, none is a traceback."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UserError
from web.http.body import bounded_int, decode, nul_at, one_of, pointer
from web.http.tasks import CreateTask

TASK = msgspec.json.Decoder(CreateTask)


def refused(body: bytes, content_type: str | None = "application/json") -> UserError:
    with pytest.raises(UserError) as caught:
        decode(content_type, body, TASK)
    return caught.value


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/x+json"])
def test_json_of_each_name_is_read(content_type: str) -> None:
    assert decode(content_type, b'{"prompt": "hi"}', TASK).prompt == "hi"


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_another_content_type_is_unsupported(content_type: str | None) -> None:
    assert refused(b'{"prompt": "hi"}', content_type).code == "unsupported_media_type"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"hello", b'{"prompt": "hi"} x', b'{"prompt": NaN}', b"\xef\xbb\xbf{}", rb'{"prompt": "\ud800"}'],
)
def test_what_is_not_json_is_invalid_json(body: bytes) -> None:
    assert refused(body).code == "invalid_json"


def test_a_bomb_of_brackets_is_invalid_json() -> None:
    assert refused(b'{"input": {"a": ' + b"[" * 200_000).code == "invalid_json"


def test_bytes_that_are_not_utf8_are_an_invalid_encoding() -> None:
    assert refused(b'{"prompt": "\xff\xfe"}').code == "invalid_encoding"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", ""),
        (b'{"prompt": 1}', "/prompt"),
        (b'{"input": []}', "/input"),
        (b'{"priority": 10}', "/priority"),
        (b'{"priority": "high"}', "/priority"),
        (b'{"idempotency_key": ""}', "/idempotency_key"),
    ],
)
def test_a_wrong_shape_names_the_field(body: bytes, where: str) -> None:
    error = refused(body)
    assert (error.code, error.details[0].where) == ("invalid_request", where)


def test_an_unknown_field_is_told_so_that_typing_errors_show() -> None:
    assert "promt" in refused(b'{"promt": "hi"}').message


@pytest.mark.parametrize(
    ("path", "expected"),
    [("$", ""), ("$.a", "/a"), ("$.a.b", "/a/b"), ("$.a[0]", "/a/0"), ("$.a[...]", "/a/..."), ("$.a~b", "/a~0b")],
)
def test_paths_become_json_pointers(path: str, expected: str) -> None:
    assert pointer(path) == expected


@given(
    st.recursive(
        st.text(st.characters(exclude_characters="\0")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_characters="\0")), inner),
    )
)
def test_text_without_nul_passes(value: object) -> None:
    assert nul_at(value) is None


@pytest.mark.parametrize(
    ("value", "where"),
    [({"a": ["x", "y\0"]}, "/a/1"), ({"a\0": 1}, ""), ({"a": {"b": "\0"}}, "/a/b")],
)
def test_a_nul_is_found_where_it_is(value: object, where: str) -> None:
    assert nul_at(value) == where


@pytest.mark.parametrize("text", ["0", "201", "-1", "1.5", "x", "", "٣", "9" * 30])
def test_a_number_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="limit must be a whole number from 1 to 200"):
        bounded_int(text, "limit", 50, 1, 200)


def test_a_number_within_bounds_is_taken_and_an_absent_one_is_the_default() -> None:
    assert (bounded_int("200", "limit", 50, 1, 200), bounded_int(None, "limit", 50, 1, 200)) == (200, 50)


def test_a_word_that_is_no_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="one of a, b"):
        one_of("c", "status", {"a": 1, "b": 2})
