"""Everything that can be set, with its default: from the command line, ELWIFT_* variables or a TOML file.

The order of precedence is the order of that sentence. Pure data; imports nothing of ours. Secrets are of a type
whose repr hides them, so that they show in no traceback.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typed_settings as ts
from attrs import evolve, field, frozen
from typed_settings.types import SecretStr

from engine.errors import UserError

NO_SECRET = SecretStr("")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def default_data_dir() -> Path:
    """Root's data is not put under its home: PostgreSQL runs as another user then, and must be able to reach it."""
    if os.geteuid() == 0:
        return Path("/var/lib/elwift")
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))) / "elwift"


@frozen
class Settings:
    """Settings of one server. Times are in seconds, sizes in bytes; an empty string means: not set."""

    # where it listens
    host: str = "127.0.0.1"
    port: int = 4000
    public_url: str = ""
    """How the outside reaches this server (https://…); webhooks need it."""
    tls_certificate: str = ""
    tls_key: str = ""
    allowed_origins: str = ""
    """Comma-separated: `https://app.example`, `*.example.org`, `same` (the default) or `*`."""

    # what it keeps
    data_dir: Path = field(factory=default_data_dir)
    database_url: SecretStr = NO_SECRET
    """Empty: an embedded PostgreSQL in `data_dir`."""
    postgres_bin_dir: str = ""
    strict_durability: bool = False
    """Answer 503 rather than accept a task in memory while the database is away."""
    snapshot_interval: float = 5.0
    retention_days: float = 0.0
    """Finished tasks older than this are archived; 0 keeps them."""
    delete_after_days: float = 0.0
    """Tasks that were archived so long ago are deleted with their files; 0: never."""
    gcs_bucket: str = ""
    """Empty: outputs are kept in a folder of `data_dir`."""
    max_output_bytes: int = 512 * 1024 * 1024
    max_outputs: int = 64
    """Bounds on one output, and on how many a task may have; beyond them the task fails."""
    output_days: float = 0.0
    """Outputs older than this are deleted, their tasks are not; 0 keeps them."""
    store_patience: float = 30.0
    """How long a finished attempt waits in place for the bucket or folder, before it is set aside and tried later."""

    # who may come in
    jwt_secret: SecretStr = NO_SECRET
    jwt_keys: str = ""
    """A file or an https URL with a JSON Web Key Set (RS256, ES256)."""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    """When set, the claims `aud` and `iss` of a token must match."""
    tokens: SecretStr = NO_SECRET
    """Opaque tokens: `token=user` or `token=user:operator`, separated by commas."""
    trusted_proxies: str = ""
    """Networks, separated by commas, from which `proxy_header` is believed to name the client."""
    proxy_header: str = "x-forwarded-for"
    """`x-forwarded-for` (with X-Forwarded-Proto) or `forwarded` (RFC 7239): whichever the proxies write."""

    # how much it takes
    max_connections: int = 20_000
    max_connections_per_address: int = 20_000
    max_connections_per_user: int = 0
    """Sockets of one user; 0: no limit."""
    compression: bool = False
    """Whether sockets may be compressed (permessage-deflate), for about 70 KiB of memory each."""
    max_body_bytes: int = 1_000_000
    max_frame_bytes: int = 1_000_000
    max_queued: int = 10_000
    max_queued_per_user: int = 2_000
    daily_budget: float = 0.0
    """US dollars a user and day of UTC, beyond which new tasks are refused; 0: none."""
    concurrency: int = 256
    """Attempts that run at once in this process, over all models that have no queue of their own."""
    queues: str = ""
    """Queues for models: `name=4` runs four at once in this process; `name=4 global=8 rate=100/60` binds all servers,
    too. A model is put into one by its setting `queue`."""

    lease: float = 30.0
    """A server that has not been heard of for so long, by the database's clock, counts as lost: its jobs run again and
    its tasks are taken over by those that share the database. At least 1."""

    memory_limit: int = 0
    """Bytes of resident memory above which tasks that wait, and at last sockets, are ended to save the rest; 0: three
    quarters of what the machine or its container has."""

    # who generates
    local_model: bool = True
    local_threads: int = 0
    """Threads of the local model; 0: one less than there are cores, at least one."""
    openai_api_key: SecretStr = NO_SECRET
    openai_base_url: str = ""
    anthropic_api_key: SecretStr = NO_SECRET
    anthropic_base_url: str = ""
    gemini_api_key: SecretStr = NO_SECRET
    gemini_base_url: str = ""
    first_token_timeout: float = 120.0
    between_tokens_timeout: float = 30.0
    replicate_api_token: SecretStr = NO_SECRET
    replicate_base_url: str = ""
    replicate_webhook_secrets: SecretStr = NO_SECRET
    replicate_output_hosts: str = ""
    """Hosts beside Replicate's own (and that of `replicate_base_url`) from which its outputs may be fetched: names, or
    `host:port` for one of ours that may have a private address; separated by commas."""
    cog_urls: str = ""
    """Cog model servers: `name=http://host:port`, with `;slots=4` when it takes four at once, separated by commas."""
    cog_folders: str = ""
    """Cog models that are served from here: `name=/path/to/model`, separated by commas."""
    cog_setup_timeout: float = 900.0
    """How long a model that is served from here may take until it is ready; then it is started again."""
    cog_output_hosts: str = ""
    """Hosts (or `host:port` of one's own network) that Cog servers upload files to, from where they may be fetched."""

    # who is told
    otlp_endpoint: str = ""
    """A collector of OpenTelemetry's, as `http://collector:4318`, to send spans to. Empty: OTEL_EXPORTER_OTLP_ENDPOINT
    counts; without that none are made."""

    # how it lives and dies
    shutdown_timeout: float = 15.0
    preempt_budget: float = 1.0
    """A process that holds the loop longer than this is interrupted and dies alone; 0 turns it off."""
    wedged_deadline: float = 0.0
    """When the loop stands still for so long and nothing helps, all stacks are written and the OS process ends, for
    whoever supervises it to start it again; 0: never."""
    log_format: str = "auto"
    """`json`, `console`, or `auto`: console on a terminal."""
    log_level: str = "info"

    @property
    def guarded(self) -> bool:
        """Whether clients must show a token; else there is one development user."""
        return bool(self.jwt_keys or self.jwt_secret or self.tokens)


def load(config: Path | None = None, **flags: object) -> Settings:
    """Settings from `config`, then the environment, then `flags` that are not None.

    Raises:
        UserError: `bad_settings`, with what is wrong and where.
    """
    if config is not None and not config.is_file():
        raise UserError("bad_settings", f"There is no settings file {config}.")
    files: list[str | Path] = [config] if config else []
    try:
        settings = ts.load(Settings, appname="elwift", config_files=files, env_prefix="ELWIFT_")
    except (ts.exceptions.TsError, OSError) as problem:
        raise UserError("bad_settings", f"The settings cannot be read: {_words(problem)}.") from problem
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    return check(evolve(settings, **given))


def _words(problem: BaseException) -> str:
    """What is wrong, from the innermost problems: the outer ones only count them."""
    if isinstance(problem, BaseExceptionGroup):
        return "; ".join(map(_words, problem.exceptions))
    inner = problem.__cause__
    return _words(inner) if isinstance(inner, BaseExceptionGroup) else str(problem)


def check(settings: Settings) -> Settings:
    """Refuses settings that contradict each other. Raises UserError."""
    if not settings.guarded and settings.host not in LOOPBACK:
        raise UserError(
            "unguarded",
            f"Without tokens the server listens on loopback only, not on {settings.host}. "
            "Set ELWIFT_JWT_SECRET, ELWIFT_JWT_KEYS or ELWIFT_TOKENS to open it to others.",
        )
    if not settings.lease >= 1.0:
        raise UserError("bad_settings", "lease is a number of seconds, at least 1.")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise UserError("bad_settings", "tls_certificate and tls_key must be set together.")
    return settings
