"""Is a webhook genuine? The signature scheme that Replicate uses (Standard Webhooks), over the raw bytes. Pure.

Sources: the specification at standardwebhooks.com; Replicate's page on verifying webhooks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from enum import StrEnum

TOLERANCE = 300.0
"""Seconds that a webhook's timestamp may differ from our clock, either way."""


class Verdict(StrEnum):
    """What is to be said of a delivery; everything but GENUINE is refused."""

    GENUINE = "genuine"
    INCOMPLETE = "incomplete"
    STALE = "stale"
    BAD_SIGNATURE = "bad_signature"


def verify(
    secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float, tolerance: float = TOLERANCE
) -> Verdict:
    """Judges a delivery. `secrets` are `whsec_…` strings, several during a rotation; `headers` in lower case."""
    try:
        identifier, stamp = headers["webhook-id"], headers["webhook-timestamp"]
        given = [part[3:] for part in headers["webhook-signature"].split(" ") if part.startswith("v1,")]
        age = abs(now - int(stamp))
    except (KeyError, ValueError):
        return Verdict.INCOMPLETE
    signed = f"{identifier}.{stamp}.".encode() + body
    if not any(_matches(secret, signed, signature) for secret in secrets for signature in given):
        return Verdict.BAD_SIGNATURE
    return Verdict.GENUINE if age <= tolerance else Verdict.STALE


def sign(secret: str, identifier: str, stamp: int, body: bytes) -> str:
    """The `webhook-signature` header of a delivery."""
    return "v1," + base64.b64encode(_digest(secret, f"{identifier}.{stamp}.".encode() + body)).decode()


def _matches(secret: str, signed: bytes, signature: str) -> bool:
    try:
        given = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(_digest(secret, signed), given)


def _digest(secret: str, signed: bytes) -> bytes:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return hmac.new(key, signed, hashlib.sha256).digest()
