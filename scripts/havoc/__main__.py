"""Breaks a server of its own at random under load, then checks that it kept every promise it made.

Load: tasks are created over HTTP, each under an idempotency key that is repeated until an answer comes; some are asked
for again later, cancelled, watched on sockets that resume. Meanwhile the server and its PostgreSQL are killed, also at
chosen instants, stopped, cut off, refused writes, and (as root) the disk of the data folder is filled.

In the end every acknowledged id, log, outcome and output is read back and held against what was said: what was called
durable must be there; what was called memory may be gone only if the process that said it died before it was written.
Prints a table, and one JSON object a line; exit status 1 when a promise was broken. Bounded in time and count.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from scripts.havoc.campaign import Options, run_campaign
from scripts.havoc.victim import ServerFailed


def parse(arguments: list[str] | None = None) -> tuple[Options, bool]:
    """The options, and whether the folder is kept."""
    parser = argparse.ArgumentParser("chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="processes to kill, among other faults (at most 1,000)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="seconds for the faults (at most 14,400)")
    parser.add_argument("--settle", type=float, default=180.0, help="seconds after the last fault to come to rest")
    parser.add_argument("--pause", type=float, default=1.0, help="about how many seconds pass between faults")
    parser.add_argument("--posters", type=int, default=6, help="clients that create tasks (at most 64)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of everything random here")
    parser.add_argument("--only", default="", help="names of faults, separated by commas: no others are made")
    parser.add_argument("--keep", action="store_true", help="keep the log, and say where it is")
    given = parser.parse_args(arguments)
    if given.kills > 1000 or given.seconds > 14_400 or given.posters > 64:
        parser.error("that is more than this script is willing to break; see --help")
    only = frozenset(filter(None, given.only.split(",")))
    options = Options(given.kills, given.seconds, given.settle, given.pause, given.posters, given.seed, only)
    return options, given.keep


def main() -> int:
    options, keep = parse()
    folder = Path(tempfile.mkdtemp(prefix="elwift-chaos-"))
    os.chmod(folder, 0o755)  # PostgreSQL must reach it as another user when we are root
    try:
        broken = trio.run(partial(run_campaign, options, folder), strict_exception_groups=True)
        status = 1 if broken else 0
    except* ServerFailed as problem:
        print(f"the server did not come up: {problem.exceptions}", file=sys.stderr)
        status = 2
    if keep or status:
        print(f"the log is kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
