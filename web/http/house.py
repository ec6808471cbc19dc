"""What the HTTP handlers work with: the runtime, who may come in, the limits. Handed to each of them; no globals.

May import the engine and `web.auth`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import field, frozen

from engine.runtime import Runtime
from web.auth import Guard, OriginPolicy
from web.telemetry.metrics import Telemetry


@frozen
class Limits:
    """Sizes in bytes, times in seconds."""

    body: int = 1_000_000
    body_timeout: float = 30.0
    page: int = 200


@frozen
class House:
    """Everything a handler may use."""

    runtime: Runtime
    guard: Guard
    origins: OriginPolicy = field(factory=OriginPolicy)
    draining: Callable[[], bool] = lambda: False
    limits: Limits = field(factory=Limits)
    telemetry: Telemetry = field(factory=Telemetry)
    access_log: bool = True
    started_at: float = field(factory=time.time)
