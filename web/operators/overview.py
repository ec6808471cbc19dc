"""One look at the whole server: load, queues, journal, providers, and what went wrong lately."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import asdict
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from engine.jobs.ports import Peer
from engine.jobs.queues import Queues, QueueStats
from engine.otp import introspect, processes
from engine.runtime import Runtime
from web.http.health import journal_view


def node_view(version: str, started_at: float) -> dict[str, Any]:
    """The operating system's process: memory in bytes, CPU time in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "version": version,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "started_at": started_at,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "memory_bytes": memory() or used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "processes": sum(1 for _ in processes()),
        "load": list(os.getloadavg()),
        "collections": gc.get_count()[2],
    }


def memory() -> int | None:
    """Resident bytes now, where the system tells them (Linux)."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def queue_view(stats: QueueStats) -> dict[str, Any]:
    """A queue: slots of this server, counts over all of them; ages and waits in seconds."""
    view = asdict(stats)
    view["name"] = view.pop("queue")
    view["running_ids"] = [str(job_id) for job_id in stats.running_ids]
    return view


def server_view(peer: Peer, me: str) -> dict[str, Any]:
    """A server on this database, as it was last seen; the age of its heartbeat in seconds."""
    return {"name": peer.name, "me": peer.name == me, "alive": peer.alive, "heartbeat_age": round(peer.age, 3)}


def provider_views(providers: Iterable[str]) -> list[dict[str, Any]]:
    """The providers and how many attempts each is making now."""
    return [_provider(name) for name in sorted(providers)]


def _provider(name: str) -> dict[str, Any]:
    running = REGISTRY.get_sample_value("elwift_provider_requests_running", {"provider": name}) or 0
    down = name == "local" and REGISTRY.get_sample_value("elwift_model_server_up") == 0
    return {"name": name, "state": "down" if down else "ready", "running": int(running)}


def rested(providers: list[dict[str, Any]], routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The providers, marked `resting` where every known route to them is cooling down after failures."""
    resting = {route["provider"] for route in routes if route["rests_for_seconds"] > 0}
    awake = {route["provider"] for route in routes if route["rests_for_seconds"] <= 0}
    return [{**known, "state": "resting"} if known["name"] in resting - awake else known for known in providers]


def sockets() -> int:
    """Open sockets."""
    node = introspect.tree("sockets", 0)
    return 0 if node is None else node.count


def overview(runtime: Runtime, queues: Queues, version: str, started_at: float) -> dict[str, Any]:
    """Everything at a glance."""
    return {
        "at": time.time(),
        "node": node_view(version, started_at),
        "journal": journal_view(runtime.journal.health()),
        "tasks": {"live": len(runtime.stash), "by_status": by_status(runtime)},
        "sockets": sockets(),
        "queues": [queue_view(stats) for stats in queues.stats()],
        "servers": [server_view(peer, queues.node) for peer in queues.servers.peers],
        "providers": provider_views(runtime.providers),
    }


def by_status(runtime: Runtime) -> Mapping[str, int]:
    """The live tasks, counted."""
    found: dict[str, int] = {}
    for task in runtime.stash:
        found[task.status.value] = found.get(task.status.value, 0) + 1
    return found


def metrics(runtime: Runtime) -> Iterable[Metric]:
    """Gauges that are read when Prometheus asks."""
    journal = runtime.journal.health()
    yield GaugeMetricFamily("elwift_db_up", "Whether the database answers", value=int(journal.up))
    yield GaugeMetricFamily("elwift_unpersisted_entries", "Journal entries in memory alone", value=journal.buffered)
    yield GaugeMetricFamily("elwift_journal_bound", "Entries that memory may hold", value=journal.bound)
    yield GaugeMetricFamily("elwift_processes", "Processes alive", value=sum(1 for _ in processes()))
    yield GaugeMetricFamily("elwift_sockets", "Open sockets", value=sockets())
