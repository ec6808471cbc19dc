"""The two answers to "who is this?". Pure data; imports nothing of ours."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


class Role(StrEnum):
    USER = "user"
    OPERATOR = "operator"


@frozen
class Identity:
    """A client that is known. `expires_at` is Unix time in seconds; None: its token does not expire."""

    user: str
    role: Role = Role.USER
    expires_at: float | None = None

    @property
    def operator(self) -> bool:
        return self.role is Role.OPERATOR

    @property
    def socket_id(self) -> str:
        """The name by which all sockets of this user are disconnected together."""
        return f"users:{self.user}"


@frozen
class Denied:
    """A client that may not enter. `code` is stable: missing, malformed, invalid, expired, unknown_key or revoked."""

    code: str
    message: str


DEVELOPER = Identity("dev", Role.OPERATOR)
"""Everybody, when no way of telling users apart is configured; the server then listens on loopback only."""
