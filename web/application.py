"""The one place where the tree is put together: settings in, a running server out, and its orderly end.

    elwift                rest_for_one: what stands later needs what stands earlier
    ├─ telemetry          the loop's lag, alarms
    ├─ spans              sends them to a collector, when there is one
    ├─ persistence        embedded PostgreSQL, pool, journal, snapshots
    ├─ names, channels, pubsub      registries
    ├─ models             reads the model registry, then is done
    ├─ tasks              TaskServers
    ├─ providers          connections, the local model's server
    ├─ jobs               queues and workers
    ├─ recovery           brings unfinished tasks back; what other servers do
    ├─ sockets, longpolls one process a connection, one a joined topic
    ├─ endpoint           the listener
    └─ memory             ends some processes before there is none left

Imports everything. How it is run is in `serve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from secrets import token_bytes
from uuid import UUID, uuid4

import trio
from attrs import define, field

from engine import __version__
from engine.errors import UserError
from engine.jobs.config import QueueConfig, Timing
from engine.jobs.queues import Queues
from engine.jobs.worker import JobHandler
from engine.models import Models
from engine.models.catalogue import seeds_for
from engine.otp import (
    DUPLICATE,
    TRANSIENT,
    UNIQUE,
    ChildSpec,
    DynamicSupervisor,
    Registry,
    Start,
    init_ack,
)
from engine.outputs import Limits as OutputLimits
from engine.outputs import Outputs
from engine.ports import ArtifactStore, StorageDown
from engine.providers.settlement import Settlement
from engine.routing import Routing
from engine.runtime import Runtime, unix_time
from engine.tasks import follow, recovery, runner
from engine.tasks.budget import Budgets
from engine.tasks.decide import JOB_WORKER
from engine.tasks.patience import Patience
from persistence.artifacts import FolderStore, LinkSigner
from persistence.bills import Bills
from persistence.database import DatabaseUnreachable, FolderError, Persistence, PersistenceSettings
from persistence.jobs.store import PostgresJobStore
from persistence.revocations import RevocationStore
from web.auth import AuthSettings, Guard, OriginPolicy
from web.auth.refresh import KeyRefresher
from web.auth.revocations import Revocations
from web.auth.settings import parse_tokens
from web.backends import Backends, artifacts, backends
from web.channels.house import ChannelHouse
from web.channels.routes import application_router
from web.endpoint import Endpoint, EndpointSettings
from web.endpoint.forwarded import Proxies
from web.housekeeping import (
    FILES,
    HOUSEKEEPING,
    ORPHANS,
    Sweeper,
    crons,
    files_handler,
    orphans_handler,
    retention_handler,
)
from web.http import cog_webhooks
from web.http import webhooks as replicate_webhooks
from web.http.app import Application as HttpApplication
from web.http.app import create_app
from web.http.artifacts import serve_folder
from web.http.bills import BillRoutes
from web.http.cog_webhooks import CogWebhooks
from web.http.house import House, Limits
from web.http.imports import ImportRoutes
from web.http.removal import RemovalRoutes
from web.http.usage import UsageRoutes
from web.http.webhooks import ReplicateWebhooks
from web.operators.doors import Doors
from web.operators.overview import metrics
from web.operators.routes import Operators
from web.queues import read_queues
from web.settings import Settings
from web.sockets.door import Door
from web.sockets.longpoll import LongPolls
from web.sockets.mount import mount, mount_longpoll
from web.sockets.pubsub import PubSub
from web.sockets.socket import Protocol
from web.telemetry.otlp import Collector, Exporter
from web.thrift import guards, memory_limit

MODELS_RETRY = 1.0


@define(eq=False)
class Application:
    """A server's parts, as handles made before the tree starts. `draining` turns true when it is told to end."""

    settings: Settings
    draining: bool = False
    secret: bytes = field(init=False, repr=False)
    persistence: Persistence = field(init=False)
    bills: Bills = field(init=False)
    backends: Backends = field(init=False)
    exporter: Exporter = field(init=False)
    sweeper: Sweeper = field(init=False)
    routing: Routing = field(init=False)
    runtime: Runtime = field(init=False)
    queues: Queues = field(init=False)
    pubsub: PubSub = field(init=False, factory=PubSub)
    guard: Guard = field(init=False)
    revocations: Revocations = field(init=False)
    origins: OriginPolicy = field(init=False)
    operators: Operators = field(init=False)
    polls: LongPolls = field(init=False)
    http: HttpApplication = field(init=False)
    endpoint: Endpoint = field(init=False)

    async def prepare(self) -> None:
        """Takes what only one server can have, the data folder and the port. Raises UserError."""
        settings = self.settings
        self.persistence = Persistence(_persistence(settings))
        try:
            await self.persistence.prepare()
        except (FolderError, DatabaseUnreachable) as problem:
            raise UserError("cannot_start", str(problem)) from problem
        try:
            self._build()
            self.endpoint.listen()
        except BaseException:
            self.persistence.release()
            raise

    def _build(self) -> None:
        settings, persistence = self.settings, self.persistence
        self.secret = _kept(settings.data_dir / "secret.key", lambda: token_bytes(32))
        self.exporter = Exporter(Collector.of(settings.otlp_endpoint))
        self.bills = Bills(persistence.pool)
        self.backends = backends(settings, self._webhook_url, self.bills.known, self._is_wanted)
        store, signer = artifacts(settings, self.secret)
        self.sweeper = Sweeper(persistence.removal, store)
        handlers: dict[str, JobHandler] = {
            HOUSEKEEPING: retention_handler(persistence.retention, self.sweeper, settings),
            FILES: files_handler(self.sweeper),
            ORPHANS: orphans_handler(self.sweeper, unix_time),
        }
        self.queues = Queues(
            PostgresJobStore(persistence.pool),
            handlers,
            _queue_configs(settings, self.backends.slots),
            _kept(settings.data_dir / "node", lambda: uuid4().hex.encode()).decode(),
            timing=Timing.of_lease(settings.lease, settings.shutdown_timeout / 3),
            crons=crons(settings),
        )
        persistence.journal.door = self.queues
        seeds = seeds_for(self.backends.providers)
        models = Models(persistence.models, self.backends.default_model, seeds, self.queues.configs)
        self.routing = Routing(models, self.backends.providers)
        self.runtime = Runtime(
            names=Registry(keys=UNIQUE, name="names"),
            channels=Registry(keys=DUPLICATE, name="channels"),
            journal=persistence.journal,
            store=persistence.store,
            snapshots=persistence.snapshots,
            queues=self.queues,
            models=models,
            users=persistence.users,
            artifacts=store,
            providers=self.routing.routed(),
            budgets=Budgets(settings.daily_budget, persistence.usage),
            homes=self.queues.servers,
            outputs=Outputs(
                store,
                self.backends.fetchers,
                settings.data_dir / "spool",
                limits=_output_limits(settings),
            ),
            spans=self.exporter.spans,
        )
        self.queues.servers.on_moved = partial(follow.moved, self.runtime)
        self.queues.servers.on_news = self.runtime.relay.heard
        models.on_change = self.runtime.relay.models_changed
        if self.backends.replicate:
            self.backends.children.append(Settlement(self.backends.replicate, self.bills, models).spec())
        handlers[JOB_WORKER] = runner.handler(self.runtime, Patience(in_place=settings.store_patience))
        self._build_doors(store, signer)

    def _build_doors(self, store: ArtifactStore, signer: LinkSigner | None) -> None:
        settings = self.settings
        self.guard = Guard.open(_auth(settings))
        self.revocations = Revocations(self.guard, RevocationStore(self.persistence.pool))
        self.origins = OriginPolicy.parse(settings.allowed_origins, loopback_only=not settings.guarded)
        house = House(
            runtime=self.runtime,
            guard=self.guard,
            origins=self.origins,
            draining=lambda: self.draining,
            limits=Limits(body=settings.max_body_bytes),
        )
        self.operators = Operators(self.queues, __version__)
        more = [
            *self.operators.routes,
            *UsageRoutes(self.persistence.usage).routes,
            *BillRoutes(self.bills).routes,
            *ImportRoutes(self.backends.replicate).routes,
            *RemovalRoutes(self.sweeper).routes,
        ]
        if self.backends.replicate:
            webhook_secrets = settings.replicate_webhook_secrets.split(",")
            more.append(ReplicateWebhooks(self.backends.replicate, self.persistence.webhooks, webhook_secrets).route)
        if self.backends.cog:
            cog, deliveries = self.backends.cog, self.persistence.webhooks
            cog.stored, cog.leaving = partial(cog_webhooks.stored, deliveries), lambda: self.draining
            more.append(CogWebhooks(cog, deliveries, self.secret).route)
        house.telemetry.add(self.operators.metrics)
        house.telemetry.add(lambda: metrics(self.runtime))
        self.http = create_app(house, more)
        if signer and isinstance(store, FolderStore):
            serve_folder(self.http, store, signer)
        self.endpoint = Endpoint(_endpoint(settings), self.http)
        self.operators.disconnect = self.endpoint.roster.disconnect
        self.operators.revocations = self.revocations
        self.revocations.disconnect = self.endpoint.roster.disconnect
        self.operators.routing = self.routing.state
        self.operators.doors = Doors(lambda: self.endpoint.connections, self.endpoint.faults.counts)
        self._build_sockets()

    def _build_sockets(self) -> None:
        faults = self.endpoint.faults
        router = application_router(ChannelHouse(self.runtime, lambda: self.draining))
        door = Door(Protocol(router, faults), self.pubsub, self.guard, self.origins, faults)
        self.polls = LongPolls(door, self.endpoint.roster)
        mount(self.http, "/socket", door)
        mount_longpoll(self.http, "/socket", self.polls)

    def children(self) -> list[ChildSpec]:
        """The tree's first level, in the order of its starts."""
        tasks, recover = recovery.specs(self.runtime)
        return [
            self.operators.spec(self.runtime),
            *([self.exporter.spec()] if self.runtime.spans.on else []),
            self.persistence.spec(),
            self.runtime.names.spec(),
            self.runtime.channels.spec(),
            self.pubsub.spec(),
            ChildSpec("models", Start.process(self._load_models, name="models"), restart=TRANSIENT),
            tasks,
            self.backends.spec(),
            self.queues.spec(),
            recover,
            *([KeyRefresher(self.guard).spec()] if KeyRefresher.needed(self.guard) else []),
            *([self.revocations.spec()] if self.settings.guarded else []),
            DynamicSupervisor.spec(id="sockets", name="sockets"),
            self.polls.spec(),
            self.endpoint.spec(),
            *guards(memory_limit(self.settings.memory_limit)),
        ]

    def _webhook_url(self, attempt_id: UUID) -> str:
        """Where a model server of ours tells of an attempt: its port is known only once the endpoint listens."""
        base = self.settings.public_url.rstrip("/") or self.endpoint.urls[0]
        return f"{base}{cog_webhooks.PATH}?attempt={attempt_id}&signature={cog_webhooks.proof(self.secret, attempt_id)}"

    async def _is_wanted(self, task_id: UUID) -> bool:
        """Whether a task still wants a result: as memory has it, and else the database. Raises StorageDown."""
        live = self.runtime.stash.get(task_id)
        return not live.task.status.terminal if live is not None else await self.bills.wanted(task_id)

    async def _load_models(self) -> None:
        """Takes over the registry's rows before anybody is served; a database that is away is waited for meanwhile."""
        while True:
            try:
                await self.runtime.models.load()
            except StorageDown:
                init_ack()
                await trio.sleep(MODELS_RETRY)
            else:
                init_ack()
                return


def _persistence(settings: Settings) -> PersistenceSettings:
    return PersistenceSettings(
        settings.data_dir,
        settings.database_url,
        settings.postgres_bin_dir,
        settings.strict_durability,
        settings.snapshot_interval,
    )


def _auth(settings: Settings) -> AuthSettings:
    return AuthSettings(
        settings.jwt_secret,
        settings.jwt_keys,
        parse_tokens(settings.tokens),
        settings.jwt_audience,
        settings.jwt_issuer,
    )


def _endpoint(settings: Settings) -> EndpointSettings:
    return EndpointSettings(
        host=settings.host,
        port=settings.port,
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        max_connections=settings.max_connections,
        max_per_address=settings.max_connections_per_address,
        max_per_user=settings.max_connections_per_user,
        compression=settings.compression,
        max_body=settings.max_body_bytes,
        large_bodies={
            cog_webhooks.PATH.encode(): cog_webhooks.MOST,
            replicate_webhooks.PATH.encode(): replicate_webhooks.MOST,
        },
        max_message=settings.max_frame_bytes,
        drain_timeout=settings.shutdown_timeout / 3,
        proxies=Proxies.parse(settings.trusted_proxies, settings.proxy_header),
    )


def _output_limits(settings: Settings) -> OutputLimits:
    return OutputLimits(
        max_bytes=settings.max_output_bytes,
        max_outputs=settings.max_outputs,
        keep_seconds=settings.output_days * 24 * 3600.0,
    )


def _queue_configs(settings: Settings, slots: Mapping[str, int]) -> dict[str, QueueConfig]:
    """The queue of everything, those of the operator's, of model servers (as many at once as they take), and the
    house's own."""

    def admitting(limit: int) -> QueueConfig:
        return QueueConfig(limit, max_waiting=settings.max_queued, user_quota=settings.max_queued_per_user)

    return {
        "default": admitting(settings.concurrency),
        **{name: admitting(limit) for name, limit in slots.items()},
        **read_queues(settings.queues, admitting(1)),
        "housekeeping": QueueConfig(limit=1),
    }


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """A value that this data folder keeps for good: made the first time, for the owner's eyes only."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(make())
        fresh.rename(path)
    return path.read_bytes()
