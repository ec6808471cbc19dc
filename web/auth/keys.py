"""Key sets (RFC 7517), read from text or a file. Imports `web.auth` data only; `refresh` fetches them from a URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt

from engine.errors import UserError
from web.auth.tokens import ALGORITHMS, Key

LARGEST = 1_000_000
"""Bytes of a key set that are read."""


def parse_keys(text: str | bytes) -> tuple[Key, ...]:
    """The RS256 and ES256 verification keys of a key set; others in it are left out. Raises ValueError."""
    try:
        entries = json.loads(text)["keys"]
        keys = [key for entry in entries if (key := _parse_key(entry))]
    except (KeyError, TypeError, AttributeError, jwt.PyJWTError) as problem:
        raise ValueError(f"not a JSON Web Key Set: {problem}") from problem
    if not keys:
        raise ValueError("the key set has no RS256 or ES256 key")
    return tuple(keys)


def _parse_key(entry: dict[str, Any]) -> Key | None:
    algorithm = entry.get("alg") or next((alg for alg, kind in ALGORITHMS.items() if kind == entry.get("kty")), None)
    if algorithm not in ALGORITHMS or entry.get("use", "sig") != "sig" or entry.get("crv", "P-256") != "P-256":
        return None
    return Key(entry.get("kid"), algorithm, jwt.PyJWK(entry, algorithm).key)


def load_key_file(path: str) -> tuple[Key, ...]:
    """Raises UserError (`bad_settings`) when the file is not there or is no key set."""
    try:
        return parse_keys(Path(path).expanduser().read_bytes()[:LARGEST])
    except (OSError, ValueError) as problem:
        raise UserError("bad_settings", f"The key set {path} cannot be used: {problem}") from problem
