"""Which pages may speak for their visitors."""

from __future__ import annotations

import pytest

from web.auth import OriginPolicy

HOST = "app.example:4000"


@pytest.mark.parametrize(
    ("policy", "origin", "allowed"),
    [
        ("", None, True),
        ("", "http://app.example:4000", True),
        ("", "HTTP://APP.example:4000", True),
        ("", "http://app.example", False),
        ("", "http://other.example:4000", False),
        ("", "null", False),
        ("", "http://[broken", False),
        ("*", "http://other.example", True),
        ("https://a.example", "https://a.example", True),
        ("https://a.example", "https://a.example:443", True),
        ("https://a.example", "https://a.example:444", False),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "http://app.example:4000", False),
        ("same, https://a.example", "http://app.example:4000", True),
        ("a.example", "http://a.example:9999", True),
        ("//a.example:80", "http://a.example", True),
        ("*.a.example", "https://a.example", True),
        ("*.a.example", "https://x.y.a.example", True),
        ("*.a.example", "https://nota.example", False),
        ("*.a.example", "https://a.example.evil", False),
    ],
)
def test_case_6_origins_are_checked(policy: str, origin: str | None, allowed: bool) -> None:
    assert OriginPolicy.parse(policy).allows(origin, HOST) is allowed


def test_without_tokens_a_foreign_name_for_loopback_is_not_the_same_origin() -> None:
    policy = OriginPolicy.parse("", loopback_only=True)
    assert policy.allows("http://localhost:4000", "localhost:4000")
    assert policy.allows("http://127.0.0.1:4000", "127.0.0.1:4000")
    assert policy.allows("http://[::1]:4000", "[::1]:4000")
    assert not policy.allows("http://evil.example:4000", "evil.example:4000")


def test_a_policy_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="not an origin"):
        OriginPolicy.parse("https://")
