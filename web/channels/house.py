"""What the application's channels need beside their client. May import `engine.runtime`."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from engine.errors import UserError
from engine.runtime import Runtime


def _open() -> bool:
    return False


@frozen
class ChannelHouse:
    """The engine, and whether the server is on its way out (then nothing new is begun)."""

    runtime: Runtime = field(repr=False)
    draining: Callable[[], bool] = _open

    def check_open(self) -> None:
        """Raises UserError `draining` when the server is about to stop."""
        if self.draining():
            raise UserError("draining", "The server is restarting. Try again in a moment.", retry_after=2.0)
