"""Providers of other people's packages: found by their entry points, made, checked, and refused alone when broken.

A package names a factory in the group `elwift.providers`; the entry point's name is the provider's. The factory gets
its own settings (no other's keys) and the client for HTTP; it answers a provider, one for each of its credentials, or
None when its settings say that it is not wanted. May import the protocol.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

import httpx
import structlog

from engine.providers.protocol import Provider

GROUP = "elwift.providers"
PREFIX = "ELWIFT_PROVIDER_"
"""`ELWIFT_PROVIDER_ACME_API_KEY` is the setting `api_key` of the provider `acme`."""
log = structlog.get_logger("elwift.plugins")

Factory = Callable[[Mapping[str, str], httpx.AsyncClient], Provider | Sequence[Provider] | None]
"""What an entry point names."""


class BadPlugin(Exception):
    """What an entry point gives is no provider, or not one under this name."""


def installed() -> Iterable[EntryPoint]:
    """The entry points of the packages that are installed."""
    return entry_points(group=GROUP)


def providers(
    points: Iterable[EntryPoint], environment: Mapping[str, str], http: httpx.AsyncClient, taken: Collection[str]
) -> dict[str, list[Provider]]:
    """The providers by name. One that cannot be loaded is said in the log and left out; `taken` are names in use."""
    found: dict[str, list[Provider]] = {}
    for point in points:
        try:
            made = list(_made(point, environment, http, {*taken, *found}))
        except Exception as problem:  # whatever a stranger's code raises: the server must start without it
            log.exception("provider not loaded", provider=point.name, factory=point.value, why=str(problem))
        else:
            if made:
                found[point.name] = made
    return found


def settings_of(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of one provider, from the variables that begin with its name."""
    prefix = f"{PREFIX}{name.upper().replace('-', '_')}_"
    return {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}


def _made(
    point: EntryPoint, environment: Mapping[str, str], http: httpx.AsyncClient, taken: Collection[str]
) -> Iterator[Provider]:
    if point.name in taken:
        raise BadPlugin(f"there is another provider {point.name!r}")
    factory: Factory = point.load()
    made = factory(settings_of(point.name, environment), http)
    each: Sequence[Provider] = () if made is None else made if isinstance(made, Sequence) else (made,)
    for provider in each:
        if getattr(provider, "name", None) != point.name:
            raise BadPlugin(f"its `name` is not {point.name!r}")
        if not inspect.isasyncgenfunction(getattr(provider, "run", None)):
            raise BadPlugin("its `run` is not an async generator")
        yield provider
