"""The children of a dynamic supervisor as data: a flat tuple each, since there may be a million.

A spec with its Start is 250 bytes and two objects for the collector to look at; what children of one sort have in
common is kept once, as a template.
"""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field, frozen

from engine.otp.child_spec import SUPERVISOR, TEMPORARY, ChildSpec, Flags, InvalidSpec, RestartWindow
from engine.otp.pid import Pid, Via
from engine.otp.start import Birth

Folded = ChildSpec | tuple[Any, ...]

MANY_TEMPLATES = 256
"""Beyond so many sorts of children nothing is gained by folding them."""


class Folder:
    """Folds specs into (template, id, key of the name, arguments…), and back."""

    def __init__(self) -> None:
        self._templates: list[ChildSpec] = []
        self._number: dict[Any, int] = {}

    def fold(self, spec: ChildSpec) -> Folded:
        """The spec in short. One that never restarts loses its arguments, which may be large."""
        start = spec.start
        args = () if spec.restart is TEMPORARY else start.args
        name = start.name
        via = isinstance(name, Via) and name.value is None
        if not via and name is not None:
            return spec.without_arguments() if spec.restart is TEMPORARY else spec
        registry = name.registry if via else None  # type: ignore[union-attr]
        sort = (
            start.subject, start.how, start.max_mailbox, start.timeout, spec.restart, spec.shutdown, spec.type,
            spec.significant, spec.backoff, id(registry),
        )  # fmt: skip
        number = self._number.get(sort)
        if number is None:
            if len(self._templates) >= MANY_TEMPLATES:
                return spec.without_arguments() if spec.restart is TEMPORARY else spec
            number = self._number[sort] = len(self._templates)
            self._templates.append(spec.without_arguments())
        return (number, spec.id, name.key if via else None, *args)  # type: ignore[union-attr]

    def template(self, folded: Folded) -> ChildSpec:
        """A spec that is right in everything but id, name and arguments."""
        return folded if isinstance(folded, ChildSpec) else self._templates[folded[0]]

    def unfold(self, folded: Folded) -> ChildSpec:
        if isinstance(folded, ChildSpec):
            return folded
        number, id, key, *args = folded
        template = self._templates[number]
        name = template.start.name
        if isinstance(name, Via):
            name = Via(name.registry, key)
        return evolve(template, id=id, start=evolve(template.start, name=name, args=tuple(args)))


@frozen
class Limits:
    """`max_children`: None is no limit. `extra_arguments` go before each child's own."""

    max_children: int | None = None
    extra_arguments: tuple[Any, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.max_children is not None and self.max_children < 0:
            raise InvalidSpec("max_children", self.max_children)


@define
class Retry:
    """A child that ended and is not up again. `pid` is what it was known by; `failures` are restarts in a row,
    `birth` is the attempt that is under way."""

    spec: ChildSpec
    pid: Pid
    failures: int = 0
    birth: Birth | None = None


@define
class Brood:
    """State of a dynamic supervisor. `starting` children have no acknowledgement yet; `retrying` ones are down and due
    again; `failures` are of those with a back-off, with the time of their last restart."""

    flags: Flags
    limits: Limits
    window: RestartWindow
    children: dict[Pid, Folded] = field(factory=dict)
    starting: dict[Pid, ChildSpec] = field(factory=dict)
    retrying: dict[Pid, Retry] = field(factory=dict)
    failures: dict[Pid, tuple[int, float]] = field(factory=dict)
    folder: Folder = field(factory=Folder)
    supervisors: int = 0

    @property
    def size(self) -> int:
        """Children that count towards `max_children`: those up, coming up and being retried."""
        return len(self.children) + len(self.starting) + len(self.retrying)

    def pids(self) -> list[Pid]:
        """Every child's process, also of those that are not up yet."""
        coming = [retry.birth.process.pid for retry in self.retrying.values() if retry.birth is not None]
        return [*self.children, *self.starting, *coming]

    def has(self, pid: Pid) -> bool:
        """Whether `pid` is one of these. Of restarts under way there are few: they are looked through."""
        if pid in self.children or pid in self.starting:
            return True
        return any(r.birth is not None and r.birth.process.pid == pid for r in self.retrying.values())

    def add(self, pid: Pid, spec: ChildSpec) -> None:
        """A child is up."""
        self.children[pid] = self.folder.fold(spec)

    def grew(self, spec: ChildSpec) -> None:
        self.supervisors += spec.type is SUPERVISOR

    def shrank(self, spec: ChildSpec) -> None:
        self.supervisors -= spec.type is SUPERVISOR
