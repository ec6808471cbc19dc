"""The operators' calls. `Operators` is made by the application; its `routes` are served beside the API's.

Looking needs the operator's role. So do acting, and each act is written to the audit log with who did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
import structlog
from attrs import asdict, define, field
from prometheus_client.metrics_core import Metric

from engine.errors import UserError
from engine.jobs.queues import Queues
from engine.otp import KILL, ChildSpec, Pid, exit, introspect
from engine.otp.introspect import ProcessInfo
from engine.runtime import Runtime
from web.auth.revocations import Revocations
from web.http.body import bounded_int, decode
from web.http.exchange import Answer, Ask, Handler, json
from web.http.house import House
from web.http.route import Parameter, Route
from web.operators.doors import Doors
from web.operators.jobs import JobRoutes, cursor_of, jobs_page
from web.operators.overview import overview, queue_view, rested
from web.operators.recent import RESTARTED, Recent
from web.operators.tree import killable, node_view, process_view, read_pid
from web.operators.watch import Watch

audit = structlog.get_logger("elwift.audit")

_NO_PROCESS = "There is no process with this pid now. GET /api/supervisor lists those that live."
_NO_QUEUE = "There is no queue of this name. GET /api/queues lists them."


class Scale(msgspec.Struct, forbid_unknown_fields=True):
    """How many jobs of a queue may run at once on each server."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=100_000)]


_scale = msgspec.json.Decoder(Scale)


def nobody(socket_id: str) -> int:
    """Closes no socket: there is no endpoint."""
    return 0


@define(eq=False)
class Operators:
    """What the operators' calls work with, beside the house. `root` is the registered name of the tree's root."""

    queues: Queues
    version: str = "0.1.0"
    root: str = "elwift"
    recent: Recent = field(factory=Recent)
    disconnect: Callable[[str], int] = field(default=nobody)
    """Closes the sockets of this name (`users:<id>`) and answers how many; the endpoint's roster does it."""

    revocations: Revocations | None = None
    routing: Callable[[], list[dict[str, Any]]] = field(default=list)
    """What the routing knows of each route: provider, credential's name, model, running, rests_for_seconds, trips."""
    doors: Doors = field(factory=Doors)
    watch: Watch | None = None

    # --- looking ---

    async def tree(self, house: House, ask: Ask) -> Answer:
        """The supervision tree; of each dynamic supervisor the first `children`, the others page by page."""
        limit = bounded_int(ask.query.get("children"), "children", 20, 0, 500)
        node = introspect.tree(self.root, limit)
        if node is None:
            raise UserError("no_such_process", "The tree is not up yet.")
        return json({"at": time.time(), "tree": node_view(node, house.runtime.stash)})

    async def children(self, house: House, ask: Ask) -> Answer:
        """A page of a supervisor's children, in the order of their starts."""
        pid = self._pid(ask.query.get("pid", ""))
        offset = bounded_int(ask.query.get("cursor"), "cursor", 0, 0, 999_999_999)
        limit = bounded_int(ask.query.get("limit"), "limit", 50, 1, 500)
        found = introspect.children(pid, offset, limit + 1)
        views = [node_view(node, house.runtime.stash) for node in found[:limit]]
        return json({"children": views, "cursor": str(offset + limit) if len(found) > limit else None})

    async def process(self, house: House, ask: Ask) -> Answer:
        """One process, as far as it may be told: never what is in its messages."""
        return json(process_view(self._info(ask), house.runtime))

    async def overview(self, house: House, ask: Ask) -> Answer:
        """The server at a glance."""
        seen = overview(house.runtime, self.queues, self.version, house.started_at)
        found = [asdict(alarm) for alarm in self.watch.standing] if self.watch else []
        lately = list(self.recent.events)[-50:]
        routes = self.routing()
        seen["providers"] = rested(seen["providers"], routes)
        seen["endpoint"] = self.doors.view()
        return json({**seen, "routes": routes, "alarms": found, "counts": dict(self.recent.counts), "recent": lately})

    async def list_queues(self, house: House, ask: Ask) -> Answer:
        """The queues."""
        return json({"queues": [queue_view(stats) for stats in self.queues.stats()]})

    async def dead_letters(self, house: House, ask: Ask) -> Answer:
        """Jobs that failed for good, newest first, a hundred at a time."""
        self._queue(ask)
        return jobs_page(await self.queues.dead_letters(ask.args["name"], cursor_of(ask)))

    # --- acting ---

    async def kill(self, house: House, ask: Ask) -> Answer:
        """Ends a process at once; its supervisor does what its specification says."""
        info = self._info(ask)
        if not killable(info):
            raise UserError("not_stoppable", "A supervisor is not killed from here. Kill what stands below it.")
        self._record(ask, "kill", pid=str(info.pid), behaviour=info.kind)
        exit(info.pid, KILL)
        return Answer(status=204)

    async def pause(self, house: House, ask: Ask) -> Answer:
        """Starts no job of the queue any more, on any server; what runs goes on."""
        name = self._queue(ask)
        self._record(ask, "pause", queue=name)
        await self.queues.pause(name)
        return json(queue_view(self.queues.stats_of(name)))

    async def resume(self, house: House, ask: Ask) -> Answer:
        """Starts jobs of the queue again."""
        name = self._queue(ask)
        self._record(ask, "resume", queue=name)
        await self.queues.resume(name)
        return json(queue_view(self.queues.stats_of(name)))

    async def scale(self, house: House, ask: Ask) -> Answer:
        """Sets how many jobs of the queue run at once on each server."""
        name = self._queue(ask)
        limit = decode(ask.headers.get("content-type"), ask.body, _scale).limit
        self._record(ask, "scale", queue=name, limit=limit)
        await self.queues.scale(name, limit)
        return json(queue_view(self.queues.stats_of(name)))

    async def revoke(self, house: House, ask: Ask) -> Answer:
        """Shuts a user out until restored: refuses their tokens and closes their sockets, at once here and within
        seconds on other servers. `stored` is false while the database is away: it is made up for."""
        user = ask.args["user"]
        if user == ask.identity.user:
            raise UserError("conflict", "You would shut yourself out. Ask another operator.")
        house.guard.revoke(user)
        closed = self.disconnect(f"users:{user}")
        self._record(ask, "revoke", user=user, sockets=closed)
        stored = self.revocations is not None and await self.revocations.revoke(user, ask.identity.user)
        return json({"user": user, "revoked": True, "sockets_closed": closed, "stored": stored})

    async def restore(self, house: House, ask: Ask) -> Answer:
        """Lets a user in again who was shut out."""
        user = ask.args["user"]
        house.guard.restore(user)
        self._record(ask, "restore", user=user)
        stored = self.revocations is not None and await self.revocations.restore(user)
        return json({"user": user, "revoked": False, "sockets_closed": 0, "stored": stored})

    def _record(self, ask: Ask, action: str, **about: object) -> None:
        audit.warning("operator", action=action, operator=ask.identity.user, request_id=ask.request_id, **about)
        words = ", ".join(str(value) for value in about.values())
        self.recent.note("operator", pid=None, words=f"{ask.identity.user}: {action} {words}")

    def _pid(self, text: str) -> Pid:
        pid = read_pid(text)
        if pid is None or not pid.alive:
            raise UserError("no_such_process", _NO_PROCESS)
        return pid

    def _info(self, ask: Ask) -> ProcessInfo:
        info = introspect.info(self._pid(ask.args["pid"]))
        if info is None:
            raise UserError("no_such_process", _NO_PROCESS)
        return info

    def _queue(self, ask: Ask) -> str:
        name = ask.args["name"]
        if name not in self.queues.lanes:
            raise UserError("no_such_queue", _NO_QUEUE)
        return name

    # --- what the application asks for ---

    def spec(self, runtime: Runtime) -> ChildSpec:
        """The process that watches the house, a child of the tree."""
        restarts = lambda: self.recent.counts[RESTARTED]  # noqa: E731
        self.watch = Watch(runtime.journal.health, self.queues.stats, restarts, routes=lambda: self.routing())
        return self.watch.spec()

    def metrics(self) -> Iterable[Metric]:
        """What the operators' room tells Prometheus."""
        yield from self.recent.metrics()
        yield from self.doors.metrics()
        if self.watch is not None:
            yield from self.watch.metrics()

    # --- the table ---

    @property
    def routes(self) -> tuple[Route, ...]:
        """The calls, for `create_app`."""
        return (
            _look(
                "/api/supervisor",
                self.tree,
                "The supervision tree",
                "Tree",
                ("invalid_request", "no_such_process"),
                Parameter("children", _whole(0, 500), "Children shown of each dynamic supervisor."),
            ),
            _look(
                "/api/supervisor/children",
                self.children,
                "A supervisor's children",
                "TreePage",
                ("invalid_request", "no_such_process"),
                Parameter("pid", {"type": "string"}, "The supervisor's pid."),
                Parameter("limit", _whole(1, 500), "How many at most."),
                Parameter("cursor", {"type": "string"}, "The `cursor` of the page before."),
            ),
            _look("/api/processes/<pid>", self.process, "One process", "Process", ("no_such_process",)),
            _look("/api/overview", self.overview, "The server at a glance", "Overview"),
            _look("/api/queues", self.list_queues, "The queues", "Queues"),
            _look(
                "/api/queues/<name>/dead-letters",
                self.dead_letters,
                "Jobs that failed for good",
                "DeadLetters",
                ("no_such_queue", "invalid_cursor", "storage_down"),
                Parameter("cursor", {"type": "string"}, "The `cursor` of the page before."),
            ),
            _act("/api/processes/<pid>/kill", self.kill, "Kill a process", None, ("no_such_process", "not_stoppable")),
            _act("/api/queues/<name>/pause", self.pause, "Pause a queue", "Queue", _QUEUE),
            _act("/api/queues/<name>/resume", self.resume, "Resume a queue", "Queue", _QUEUE),
            _act("/api/queues/<name>/scale", self.scale, "Scale a queue", "Queue", (*_BODY, *_QUEUE), "Scale"),
            *JobRoutes(self.queues, self._record).routes,
            _act("/api/users/<path:user>/revoke", self.revoke, "Shut a user out", "Revocation", ("conflict",)),
            _act("/api/users/<path:user>/restore", self.restore, "Let a user in again", "Revocation", ()),
        )


_QUEUE = ("no_such_queue", "storage_down")
_BODY = ("invalid_json", "invalid_encoding", "invalid_request", "body_too_large", "unsupported_media_type")


def _whole(low: int, high: int) -> dict[str, object]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _look(
    path: str, handler: Handler, summary: str, answer: str, refusals: tuple[str, ...] = (), *parameters: Parameter
) -> Route:
    return Route(
        "GET",
        path,
        handler,
        summary,
        answer=answer,
        refusals=refusals,
        parameters=parameters,
        operator=True,
        tag="operators",
    )


def _act(
    path: str, handler: Handler, summary: str, answer: str | None, refusals: tuple[str, ...], body: str | None = None
) -> Route:
    return Route(
        "POST",
        path,
        handler,
        summary,
        answer=answer,
        status=200 if answer else 204,
        body=body,
        refusals=refusals,
        operator=True,
        tag="operators",
    )
