"""What the engine counts and times, for Prometheus. Names carry the prefix `elwift_`; no user or task is ever a label.

May import prometheus-client alone. Other rooms of the engine add their metrics in their own modules.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

TASKS_LIVE = Gauge("elwift_tasks_live", "Tasks whose TaskServer is in memory.")
TASKS_ACCEPTED = Counter("elwift_tasks_accepted_total", "Tasks accepted.", ["model", "durability"])


@cache
def accepted(model: str, durability: str) -> Counter:
    """The one counter among TASKS_ACCEPTED, looked up once: it is met at every acceptance."""
    return TASKS_ACCEPTED.labels(model, durability)


TASKS_FINISHED = Counter("elwift_tasks_finished_total", "Tasks that reached a terminal status.", ["model", "status"])
TASK_DURATION = Histogram(
    "elwift_task_duration_seconds", "From acceptance to a terminal status.", ["model", "status"], buckets=_LONG
)
ACCEPT_DURATION = Histogram(
    "elwift_task_accept_duration_seconds", "From a checked wish to its acknowledgement.", buckets=_SHORT
)
TASK_RESTARTS = Counter("elwift_task_server_restarts_total", "TaskServers that crashed and were rebuilt.")
TASKS_RECOVERED = Counter("elwift_tasks_recovered_total", "Unfinished tasks that came back when the node started.")

PROVIDER_REQUESTS = Counter(
    "elwift_provider_requests_total", "Attempts, by how they ended: a finish reason or an error's code.",
    ["provider", "outcome"],
)  # fmt: skip
PROVIDER_DURATION = Histogram(
    "elwift_provider_request_duration_seconds", "From an attempt's begin to its end.", ["provider"], buckets=_LONG
)
FIRST_OUTPUT = Histogram(
    "elwift_provider_first_output_seconds", "From an attempt's begin to its first text or progress.", ["provider"],
    buckets=_SHORT,
)  # fmt: skip
PROVIDER_RUNNING = Gauge("elwift_provider_requests_running", "Attempts at work now.", ["provider"])
TOKENS = Counter("elwift_provider_tokens_total", "Tokens, as the providers count them.", ["provider", "direction"])
SET_ASIDE = Counter(
    "elwift_results_set_aside_total", "Attempts set aside since a finished result could not be stored.", ["code"]
)
MODEL_SERVER_UP = Gauge("elwift_model_server_up", "Whether the local model's process answers (1) or not (0).")
MODEL_SERVER_RESTARTS = Counter("elwift_model_server_restarts_total", "Ends of the local model's process.")

# OpenTelemetry's conventions for clients of generative AI, under the names that Prometheus gives them. Buckets are
# theirs; images and videos take longer than text, so the durations go on beyond.
_GEN_AI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
GEN_AI_DURATION = Histogram(
    "gen_ai_client_operation_duration_seconds", "One attempt's call of its provider, all retries of it included.",
    [*_GEN_AI, "error_type"], buckets=tuple(0.01 * 2**k for k in range(18)),
)  # fmt: skip
GEN_AI_TOKENS = Histogram(
    "gen_ai_client_token_usage", "Tokens of one call, as its provider counts them.",
    [*_GEN_AI, "gen_ai_token_type"], buckets=tuple(4.0**k for k in range(14)),
)  # fmt: skip
