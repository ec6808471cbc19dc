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

    def valid(self, name: str, expires: str, signature: str, now: float | None = None) -> bool:
        """Whether the signature is ours and the link has not expired."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return False
        genuine = hmac.compare_digest(self._signature(name, int(expires)).encode(), signature.encode())
        return genuine and int(expires) >= (time.time() if now is None else now)

    def _signature(self, name: str, expires: int) -> str:
        return hmac.new(self.key, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
