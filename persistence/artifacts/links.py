"""Links to stored objects that expire and cannot be forged, for stores that have none of their own. Pure."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import quote

from attrs import frozen


@frozen
class LinkSigner:
    """Signs `name` and an expiry (Unix seconds) with HMAC-SHA256 under a secret of at least 32 bytes."""

    key: bytes
    base: str = "/artifacts"

    def link(self, name: str, expires_in: float) -> str:
        expires = int(time.time() + expires_in)
        return f"{self.base}/{quote(name)}?expires={expires}&signature={self._signature(name, expires)}"

    def genuine(self, name: str, expires: str, signature: str) -> bool:
        """Whether the link is one of ours, expired or not. Takes the same time whatever the signature is."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return False
        return hmac.compare_digest(
            self._signature(name, int(expires)).encode(), signature.encode("utf-8", "surrogatepass")
        )

    def expired(self, expires: str, now: float | None = None) -> bool:
        """Whether the time of a genuine link is over."""
        return int(expires) < (time.time() if now is None else now)

    def _signature(self, name: str, expires: int) -> str:
        signed = f"{name}\n{expires}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, signed, hashlib.sha256).hexdigest()
