"""What decides who may come in. Pure data, and how it is read from text; imports nothing of ours but `identity`."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from attrs import field, frozen

from engine.errors import UserError
from web.auth.identity import Identity, Role


def digest(token: str) -> bytes:
    """Opaque tokens are looked up by their hash, so that the time of the look-up tells nothing about them."""
    return sha256(token.encode()).digest()


@frozen
class AuthSettings:
    """With none of `secret`, `key_set` and `tokens` there is one user, the developer.

    `secret` verifies HS256; `key_set` (a file, or an http(s) URL, with a JSON Web Key Set) verifies RS256 and ES256;
    `tokens` maps the digest of an opaque token to its user. `audience` and `issuer`, when set, must match the claims.
    `leeway` is in seconds.
    """

    secret: str = field(default="", repr=False)
    key_set: str = ""
    tokens: Mapping[bytes, Identity] = field(factory=dict, repr=False)
    audience: str = ""
    issuer: str = ""
    leeway: float = 5.0

    @property
    def guarded(self) -> bool:
        """Whether clients must show a token."""
        return bool(self.secret or self.key_set or self.tokens)


def parse_tokens(text: str) -> dict[bytes, Identity]:
    """Reads `token=user` and `token=user:operator`, separated by commas. Raises UserError (`bad_settings`)."""
    return dict(_parse_token(part.strip()) for part in text.split(",") if part.strip())


def _parse_token(part: str) -> tuple[bytes, Identity]:
    token, equals, owner = part.partition("=")
    user, _, role = owner.partition(":")
    if not (token and equals and user) or role not in ("", *Role):
        raise UserError("bad_settings", "Tokens are written as token=user or token=user:operator, separated by commas.")
    return digest(token), Identity(user, Role(role or Role.USER))
