"""Spans on their way out: gathered, encoded and posted to a collector (OTLP over HTTP, protobuf) by one process.

Nothing here holds up what is traced: a span that ends is put into a bounded line, and one too many is counted and
forgotten. A collector that is away is asked again with a growing pause. The official SDK makes the spans and knows the
wire format; its exporter is not used, for its thread would be nobody's child. May import engine.otp and OpenTelemetry.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Mapping
from urllib.parse import unquote

import httpx
import structlog
import trio
from attrs import field, frozen
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from prometheus_client import Counter

from engine import __version__
from engine.errors import UserError
from engine.otp import ChildSpec, ExitSignal, Start, init_ack, receive, trap_exits
from engine.tracing import Spans

SPANS = Counter("elwift_spans_total", "Spans, by what became of them.", ["outcome"])
EXPORTED, DROPPED = SPANS.labels("exported"), SPANS.labels("dropped")
MOST_WAITING = 8192
BATCH = 512
PERIOD = 2.0
"""Seconds that a span waits at most for others to go with it."""
TIMEOUT = 10.0
LAST_WORDS = 2.0
"""Seconds that an orderly stop waits for the rest to be taken."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
MOST_TRIES = 6
PASSING = frozenset({429, 502, 503, 504})
"""Statuses after which the same spans are worth another try (OTLP 1.9)."""
PATH = "/v1/traces"
log = structlog.get_logger("elwift.telemetry")


@frozen
class Collector:
    """Where spans go. An empty `url`: nowhere."""

    url: str = ""
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, endpoint: str, environment: Mapping[str, str] = os.environ) -> Collector:
        """The collector at `endpoint`, else that of OpenTelemetry's own variables (OTLP exporter specification).

        Raises UserError (`bad_settings`) when that is no http(s) URL.
        """
        whole = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
        base = endpoint or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if disabled or not (base or whole):
            return cls()
        names = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        headers = {name: value for variable in names for name, value in _pairs(environment.get(variable, ""))}
        url = whole if whole and not endpoint else base.rstrip("/") + PATH
        if not url.startswith(("http://", "https://")):
            raise UserError("bad_settings", f"The collector of spans must be an http(s) URL, not {base or whole!r}.")
        return cls(url, headers)


def _pairs(text: str) -> list[tuple[str, str]]:
    """`a=b,c=d`, percent-encoded."""
    parts = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return [(name.strip().lower(), unquote(value.strip())) for name, _, value in parts]


class Exporter(SpanProcessor):
    """The handle, made before the tree: `spans` makes spans, `spec` is the process that sends them."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.spans = Spans()
        self._waiting: deque[ReadableSpan] = deque()
        self._full = trio.Event()
        if collector.url:
            # the sampler is that of OTEL_TRACES_SAMPLER; resource attributes those of OTEL_RESOURCE_ATTRIBUTES
            named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "elwift"), "service.version": __version__}
            provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
            provider.add_span_processor(self)
            self.spans = Spans(provider.get_tracer("elwift", __version__))

    def spec(self) -> ChildSpec:
        """The child to put where it outlives what is traced."""
        return ChildSpec("spans", Start.process(self._run, name="spans"), shutdown=LAST_WORDS + 1.0)

    def on_end(self, span: ReadableSpan) -> None:
        """The SDK's word that a span is over. Called on the loop."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._waiting) >= MOST_WAITING:
            DROPPED.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._full.set()

    # --- the process -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        trap_exits()
        init_ack()
        async with httpx.AsyncClient(timeout=TIMEOUT, headers=dict(self.collector.headers)) as http:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_forever, http)
                while not isinstance(await receive(), ExitSignal):
                    pass  # nobody else writes to it
                nursery.cancel_scope.cancel()
            with trio.move_on_after(LAST_WORDS):
                while self._waiting:
                    await self._send(http, self._batch(), tries=1)

    async def _send_forever(self, http: httpx.AsyncClient) -> None:
        while True:
            with trio.move_on_after(PERIOD):
                await self._full.wait()
            self._full = trio.Event()
            while self._waiting:
                await self._send(http, self._batch(), MOST_TRIES)

    def _batch(self) -> list[ReadableSpan]:
        return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    async def _send(self, http: httpx.AsyncClient, batch: list[ReadableSpan], tries: int) -> None:
        """Posts one batch; what is not taken after so many tries is lost, and counted. Cancelled, it goes back."""
        try:
            taken = await self._taken(http, batch, tries)
        except trio.Cancelled:
            self._waiting.extendleft(reversed(batch))
            raise
        except Exception:  # what only tells of the work must never end the work, whatever is wrong with it
            log.exception("spans lost", count=len(batch))
            taken = False
        (EXPORTED if taken else DROPPED).inc(len(batch))

    async def _taken(self, http: httpx.AsyncClient, batch: list[ReadableSpan], tries: int) -> bool:
        # some thirty microseconds a span: too long for the loop
        body = await trio.to_thread.run_sync(lambda: encode_spans(batch).SerializeToString())
        pause, why = FIRST_PAUSE, ""
        for left in reversed(range(tries)):
            try:
                answer = await http.post(
                    self.collector.url, content=body, headers={"content-type": "application/x-protobuf"}
                )
            except httpx.HTTPError as error:
                why = type(error).__name__
            else:
                if answer.is_success:
                    return True
                why = f"status {answer.status_code}"
                if answer.status_code not in PASSING:
                    break
            if left:
                await trio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
        log.warning("spans lost", count=len(batch), why=why)
        return False
