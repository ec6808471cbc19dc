"""The judgement over a token: a pure function of settings, keys, token and time. Imports `web.auth` data only.

A shared secret verifies HS256 and nothing else, a public key the algorithm of its own kind: a token cannot choose
to be verified with the wrong sort of key (RFC 8725 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import jwt
from attrs import frozen

from web.auth.credentials import Credentials
from web.auth.identity import DEVELOPER, Denied, Identity, Role
from web.auth.settings import AuthSettings, digest

ALGORITHMS = {"RS256": "RSA", "ES256": "EC"}
LONGEST_USER = 255


@frozen
class Key:
    """A public key of a key set, with the one algorithm it may verify."""

    id: str | None
    algorithm: str
    material: Any


def authenticate(settings: AuthSettings, keys: Sequence[Key], credentials: Credentials) -> Identity | Denied:
    """Who shows these credentials. Without settings everybody is the developer, token or not."""
    if not settings.guarded:
        return DEVELOPER
    if credentials.malformed:
        return Denied("malformed", "The token cannot be read.")
    if not credentials.token:
        return Denied("missing", "A token is needed.")
    known = settings.tokens.get(digest(credentials.token)) if settings.tokens else None
    return known or _judge(settings, keys, credentials.token)


def _judge(settings: AuthSettings, keys: Sequence[Key], token: str) -> Identity | Denied:
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        return Denied("invalid", "The token is not valid.")
    candidates = list(_candidates(settings, keys, header))
    if not candidates:
        unknown = header.get("alg") in ALGORITHMS and bool(settings.key_set)
        return Denied("unknown_key" if unknown else "invalid", "The token is signed with a key that is not known.")
    answers = [_verify(settings, key, token) for key in candidates]
    return next((answer for answer in answers if isinstance(answer, Identity)), answers[0])


def _candidates(settings: AuthSettings, keys: Sequence[Key], header: dict[str, Any]) -> Iterable[Key]:
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm == "HS256" and settings.secret:
        yield Key(None, "HS256", settings.secret)
    elif algorithm in ALGORITHMS:
        yield from (key for key in keys if key.algorithm == algorithm and key_id in (None, key.id))


def _verify(settings: AuthSettings, key: Key, token: str) -> Identity | Denied:
    try:
        claims = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            leeway=timedelta(seconds=settings.leeway),
            audience=settings.audience or None,
            issuer=settings.issuer or None,
            options={"require": ["sub"], "verify_aud": bool(settings.audience)},
        )
    except jwt.ExpiredSignatureError:
        return Denied("expired", "The token has expired.")
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        return Denied("invalid", "The token is not valid.")
    return _identity(claims)


def _identity(claims: dict[str, Any]) -> Identity | Denied:
    user = claims["sub"]
    if not 0 < len(user) <= LONGEST_USER or "\0" in user:
        return Denied("invalid", "The token names no user.")
    roles = claims.get("roles")
    operator = claims.get("role") == Role.OPERATOR or (isinstance(roles, list) and Role.OPERATOR in roles)
    expires = claims.get("exp")
    return Identity(user, Role.OPERATOR if operator else Role.USER, None if expires is None else float(expires))
