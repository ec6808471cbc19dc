"""Whether a page may open a socket or post here, by its Origin header. Pure; imports nothing of ours.

Native clients send no Origin and are let through: the check protects a browser's user from other sites' pages.
Source of the modes: Phoenix.Socket.Transport, `check_origin`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from attrs import frozen

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
DEFAULT_PORTS = {"http": 80, "https": 443}


@frozen
class OriginRule:
    """One allowed origin. None in `scheme` or `port` means any; a `host` of `*.example.org` matches the apex too."""

    scheme: str | None
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> OriginRule:
        """Reads `https://app.example:8443`, `//app.example`, `app.example` or `*.example.org`. Raises ValueError."""
        parts = urlsplit(text if "//" in text else f"//{text}")
        if not parts.hostname:
            raise ValueError(f"{text!r} is not an origin")
        scheme = parts.scheme or None
        return cls(scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(scheme or ""))

    def allows(self, scheme: str, host: str, port: int | None) -> bool:
        if self.scheme not in (None, scheme) or self.port not in (None, port):
            return False
        return host == self.host or (
            self.host.startswith("*.") and (host == self.host[2:] or host.endswith(self.host[1:]))
        )


@frozen
class OriginPolicy:
    """`same`: pages that this server served. `rules`: these as well. `off`: every page."""

    same: bool = True
    rules: tuple[OriginRule, ...] = ()
    off: bool = False
    loopback_only: bool = False
    """Same-origin pages must come from a loopback name too: without tokens, a foreign name that resolves to loopback
    (DNS rebinding) would otherwise be let in."""

    @classmethod
    def parse(cls, text: str, loopback_only: bool = False) -> OriginPolicy:
        """Reads a comma-separated list of origins, `same` and `*`; empty means `same`. Raises ValueError."""
        words = [word.strip() for word in text.split(",") if word.strip()] or ["same"]
        rules = tuple(OriginRule.parse(word) for word in words if word not in ("same", "*"))
        return cls("same" in words, rules, "*" in words, loopback_only)

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Judges an Origin header against the request's Host header (both as they came)."""
        if origin is None or self.off:
            return True
        try:
            parts = urlsplit(origin.strip().lower())
            name, port = parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return False
        if not name:
            return False
        if self.same and parts.netloc == (host or "").strip().lower():
            return not self.loopback_only or name in LOOPBACK
        return any(rule.allows(parts.scheme, name, port) for rule in self.rules)
