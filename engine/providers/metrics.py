"""Counters of the providers' room, in Prometheus' words. Never labelled with a user or a task."""

from __future__ import annotations

from prometheus_client import Counter

POSSIBLE_DUPLICATES = Counter(
    "elwift_provider_duplicate_calls_total",
    "Calls made although an earlier one of the same attempt may have been taken: possibly paid twice",
    ["provider"],
)
