"""Partitions: several copies of one child, and a stable choice among them by key.

What one process would do for everybody is done by `count` of them, each for its share of the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from engine.otp.child_spec import ONE_FOR_ONE, PERMANENT, ChildSpec, InvalidSpec, Restart, Strategy
from engine.otp.names import UniqueNames
from engine.otp.pid import Pid, Via
from engine.otp.supervisor import Supervisor


class Partitions:
    """A handle, made before the tree: `spec` puts the copies into the tree, `via(key)` addresses the one for a key.

    Raises:
        InvalidSpec: there is to be at least one.
    """

    def __init__(self, name: str, count: int) -> None:
        if count < 1:
            raise InvalidSpec("partitions", count)
        self.name = name
        self.count = count
        self._names = UniqueNames()

    def spec(
        self,
        child: ChildSpec,
        *,
        arguments: Callable[[tuple[Any, ...], int], tuple[Any, ...]] | None = None,
        strategy: Strategy = ONE_FOR_ONE,
        intensity: int = 3,
        period: float = 5.0,
        restart: Restart = PERMANENT,
    ) -> ChildSpec:
        """A supervisor of `count` copies of `child`, with ids 0, 1, …; `arguments(args, number)` gives each its own."""
        copies = [self._copy(child, number, arguments) for number in range(self.count)]
        return Supervisor.spec(copies, strategy, intensity, period, id=self.name, name=self.name, restart=restart)

    def _copy(self, child: ChildSpec, number: int, arguments: Any) -> ChildSpec:
        start = child.start
        args = start.args if arguments is None else arguments(start.args, number)
        return evolve(child, id=number, start=evolve(start, args=args, name=(*start.names, Via(self, number))))

    def number(self, key: Any) -> int:
        """Which copy a key belongs to: integers in turn, others by their hash."""
        return (abs(key) if isinstance(key, int) else hash(key)) % self.count

    def via(self, key: Any) -> Via:
        """The address of the copy that a key belongs to."""
        return Via(self, key)

    # --- as a namespace -----------------------------------------------------------------------------------

    def claim(self, key: int, pid: Pid, value: Any = None) -> Pid | None:
        return self._names.claim(key, pid)

    def forget(self, key: int, pid: Pid) -> bool:
        return self._names.forget(key, pid)

    def resolve(self, key: Any) -> Pid | None:
        return self._names.whereis(self.number(key))
