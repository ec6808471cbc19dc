"""Empties the spool: the files of attempts whose tasks are over, and stored. A process beside the TaskServers.

What this process knows to be spent goes at once when its task has left memory; what an earlier life has left behind is
asked for in the database. Nothing goes that a task which is not over may still need.
"""

from __future__ import annotations

import trio

from engine.otp import init_ack
from engine.ports import StorageDown
from engine.runtime import Runtime

EVERY = 1.0
LOOK = 600.0
"""Seconds between two looks at what else lies there; what has changed within that time is left alone."""


async def clear(runtime: Runtime) -> None:
    """Goes on for as long as the node lives."""
    init_ack()
    looked = trio.current_time()
    while True:
        await trio.sleep(EVERY)
        await clear_spent(runtime)
        if trio.current_time() - looked >= LOOK:
            looked = trio.current_time()
            await clear_leftovers(runtime, LOOK)


async def clear_spent(runtime: Runtime) -> None:
    """What attempts of this process have left."""
    outputs = runtime.outputs
    for attempt_id, task_id in list(outputs.spent.items()):
        if task_id not in runtime.stash:
            await outputs.spool.discard(attempt_id)
            del outputs.spent[attempt_id]


async def clear_leftovers(runtime: Runtime, older_than: float) -> None:
    """What has lain there for so many seconds and belongs to no attempt that may go on."""
    if runtime.journal.health().buffered:
        return  # what the database knows is not all yet
    spool = runtime.outputs.spool
    attempts = await spool.leftovers(older_than)
    try:
        needed = await runtime.store.open_attempts(attempts) if attempts else frozenset()
    except StorageDown:
        return
    for attempt_id in attempts:
        if attempt_id not in needed:
            await spool.discard(attempt_id)
