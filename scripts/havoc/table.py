"""What was found, as a table for people and as one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

Row = tuple[str, float]


def show(rows: Sequence[Row], broken: Sequence[str]) -> None:
    """The table goes to standard error, the JSON to standard output."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:>10}", file=sys.stderr)
    for name, value in rows:
        print(json.dumps({"bench": "chaos", "name": name, "value": value}))
    for promise in broken:
        print(json.dumps({"bench": "chaos", "name": "broken", "value": promise}))
