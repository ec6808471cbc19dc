"""Whose token is it: the judgement, over every way of showing one."""

from __future__ import annotations

import json
import time
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from web.auth import DEVELOPER, AuthSettings, Credentials, Denied, Guard, Identity, Role, authenticate, negotiate
from web.auth.keys import parse_keys
from web.auth.settings import parse_tokens

SECRET = "a secret of at least thirty-two bytes"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())


def key_set() -> str:
    entries = [
        {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "r", "alg": "RS256"},
        {**jwt.algorithms.ECAlgorithm.to_jwk(P256.public_key(), as_dict=True), "kid": "e"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "not a public key"},
    ]
    return json.dumps({"keys": entries})


def signed(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({"sub": "ann", **claims}, key, algorithm=algorithm, headers=headers)


def judge(token: str | None, **given_settings: Any) -> Identity | Denied:
    keys = parse_keys(key_set()) if given_settings.get("key_set") else ()
    return authenticate(AuthSettings(**given_settings), keys, Credentials(token))


def code(answer: Identity | Denied) -> str:
    return answer.code if isinstance(answer, Denied) else f"{answer.user} let in"


def test_without_settings_everybody_is_the_developer() -> None:
    assert judge(None) == DEVELOPER
    assert judge("whatever") == DEVELOPER


def test_a_shared_secret_lets_its_tokens_in_and_no_others() -> None:
    assert judge(signed(), secret=SECRET) == Identity("ann")
    assert code(judge(signed("another secret, just as long as it"), secret=SECRET)) == "invalid"
    assert code(judge(None, secret=SECRET)) == "missing"
    assert code(judge("not.a.token", secret=SECRET)) == "invalid"


def test_expiry_is_enforced_and_handed_on() -> None:
    soon = int(time.time()) + 60
    assert judge(signed(exp=soon), secret=SECRET) == Identity("ann", expires_at=float(soon))
    assert code(judge(signed(exp=soon - 120), secret=SECRET)) == "expired"


def test_the_operators_role_comes_from_the_claims() -> None:
    assert judge(signed(role="operator"), secret=SECRET) == Identity("ann", Role.OPERATOR)
    assert judge(signed(roles=["x", "operator"]), secret=SECRET) == Identity("ann", Role.OPERATOR)
    assert judge(signed(role="admin"), secret=SECRET) == Identity("ann")
    assert judge(signed(roles="operator"), secret=SECRET) == Identity("ann"), "a string is no list of roles"


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (P256, "ES256", "e"), (RSA, "RS256", None)])
def test_a_key_set_verifies_its_own_algorithms(key: Any, algorithm: str, kid: str | None) -> None:
    assert judge(signed(key, algorithm, kid), key_set="keys.json") == Identity("ann")


def test_an_unknown_key_is_told_apart_so_that_the_key_set_can_be_fetched_again() -> None:
    assert code(judge(signed(RSA, "RS256", "new"), key_set="keys.json")) == "unknown_key"


def test_a_public_key_is_no_shared_secret() -> None:
    """The classic confusion: an HS256 token signed with the bytes of the public key (RFC 8725 2.1)."""
    from cryptography.hazmat.primitives import serialization as s

    pem = RSA.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    header = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    claims = urlsafe_b64encode(b'{"sub":"ann"}').rstrip(b"=")
    import hashlib
    import hmac

    signature = urlsafe_b64encode(hmac.digest(pem, header + b"." + claims, hashlib.sha256)).rstrip(b"=")
    assert code(judge(b".".join((header, claims, signature)).decode(), key_set="keys.json")) == "invalid"


def test_an_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode({"sub": "ann"}, None, algorithm="none")
    assert code(judge(unsigned, secret=SECRET, key_set="keys.json")) == "invalid"


@pytest.mark.parametrize("claims", [{"sub": ""}, {"sub": 7}, {"sub": "x" * 256}, {"sub": "a\0b"}, {"exp": "soon"}])
def test_claims_that_name_no_user_are_refused(claims: dict[str, Any]) -> None:
    token = jwt.api_jws.encode(json.dumps({"sub": "ann", **claims}).encode(), SECRET, algorithm="HS256")
    assert code(judge(token, secret=SECRET)) == "invalid"


def test_audience_and_issuer_must_match_when_set() -> None:
    wanted = {"secret": SECRET, "audience": "elwift", "issuer": "us"}
    assert judge(signed(aud="elwift", iss="us"), **wanted) == Identity("ann")
    assert code(judge(signed(aud="other", iss="us"), **wanted)) == "invalid"
    assert code(judge(signed(iss="us"), **wanted)) == "invalid"


def test_opaque_tokens_are_read_from_settings() -> None:
    tokens = parse_tokens("abc=ann, def=bob:operator")
    assert judge("abc", tokens=tokens) == Identity("ann")
    assert judge("def", tokens=tokens) == Identity("bob", Role.OPERATOR)
    assert code(judge("ghi", tokens=tokens)) == "invalid"


@pytest.mark.parametrize("text", ["abc", "=ann", "abc=", "abc=ann:king"])
def test_tokens_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(Exception, match="token=user"):
        parse_tokens(text)


def test_settings_do_not_show_their_secrets() -> None:
    shown = repr(AuthSettings(secret=SECRET, tokens=parse_tokens("abc=ann")))
    assert SECRET not in shown
    assert "abc" not in shown


def test_a_revoked_user_is_refused_until_restored() -> None:
    guard = Guard(AuthSettings(secret=SECRET))
    guard.revoke("ann")
    assert code(guard.authenticate(Credentials(signed()))) == "revoked"
    assert code(guard.authenticate(Credentials(signed(sub="bob")))) == "bob let in"
    guard.restore("ann")
    assert code(guard.authenticate(Credentials(signed()))) == "ann let in"


# --- where a token is found ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials.of(query="vsn=2.0.0&token=1234"),
        Credentials.of(query="api_key=1234"),
        Credentials.of([("authorization", "Bearer 1234")]),
        Credentials.of([("authorization", "bearer  1234 ")]),
        Credentials.of([("x-phoenix-authtoken", "1234")]),
        Credentials.of(subprotocols=["phoenix", "base64url.bearer.phx.MTIzNA"]),
        Credentials.of(subprotocols=["phoenix", "base64url.bearer.phx.MTIzNA=="]),
        Credentials.of([("x-api-key", "no")], "token=no", ["base64url.bearer.phx.MTIzNA"]),
    ],
)
def test_a_token_is_found_wherever_clients_put_it(credentials: Credentials) -> None:
    assert credentials == Credentials("1234")


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_case_9_both_alphabets_of_base64_are_read(token: str) -> None:
    for encode in (b64encode, urlsafe_b64encode):
        entry = "base64url.bearer.phx." + encode(token.encode()).decode().rstrip("=")
        assert Credentials.of(subprotocols=[entry]) == Credentials(token)


@pytest.mark.parametrize("text", ["", "%%%", "é", "A", "/w", "_w"])
def test_a_token_that_cannot_be_decoded_is_malformed(text: str) -> None:
    found = Credentials.of(subprotocols=["base64url.bearer.phx." + text])
    assert found == Credentials(malformed=True)
    assert code(authenticate(AuthSettings(secret=SECRET), (), found)) == "malformed"


def test_what_is_no_token_is_none() -> None:
    assert Credentials.of([("accept", "*/*")], "vsn=2.0.0", ["phoenix"]) == Credentials()
    assert Credentials.of([("authorization", "Basic abc")]) == Credentials(malformed=True)
    assert Credentials.of(query="token=" + "x" * 9000) == Credentials(malformed=True)
    assert Credentials.of(query="token=1&" + "&".join("abcdefgh" for _ in range(200))) == Credentials()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_judge_stumble(raw: bytes) -> None:
    text = raw.decode("latin-1")
    for credentials in (Credentials(text), Credentials.of(query="token=" + text), Credentials.of(subprotocols=[text])):
        answer = authenticate(AuthSettings(secret=SECRET, key_set="x"), parse_keys(key_set()), credentials)
        assert isinstance(answer, Denied)


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ([], (True, None)),
        (["phoenix"], (True, "phoenix")),
        (["phoenix", "base64url.bearer.phx.MTIzNA"], (True, "phoenix")),
        (["base64url.bearer.phx.MTIzNA"], (True, None)),
        (["mqtt"], (False, None)),
    ],
)
def test_case_8_the_subprotocol_is_echoed_when_it_was_offered(
    offered: list[str], answer: tuple[bool, str | None]
) -> None:
    assert negotiate(offered) == answer
