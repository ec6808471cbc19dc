"""Writes the outcomes of jobs without a task: gathers them, and writes each batch in one statement.

What comes while a batch is being written makes the next one. While the database is away the outcomes wait here
(they are as many as jobs ran, so the slots bound them), and their leases are kept alive until they are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice

import trio
from attrs import define, field

from engine.jobs import metrics
from engine.jobs.job import Fence, JobChange
from engine.jobs.ports import JobStore
from engine.otp import init_ack
from engine.ports import StorageDown

log = logging.getLogger(__name__)

BATCH = 500
RETRY_AFTER = 0.5
"""Seconds between attempts while the database is away."""


@define(eq=False)
class Outbox:
    """The outcomes that are not written yet. A plain object: a restarted acknowledger goes on with it.

    `on_written` is called after each batch.
    """

    on_written: Callable[[], None] = field(default=lambda: None)
    pending: dict[Fence, JobChange] = field(factory=dict)
    _filled: trio.Event = field(factory=trio.Event)
    _flushing: trio.Lock = field(factory=trio.Lock)

    def put(self, change: JobChange) -> None:
        """Takes the outcome of an attempt, under its fence."""
        assert change.fence is not None
        self.pending[change.fence] = change
        self._filled.set()

    async def flush(self, store: JobStore) -> None:
        """Writes everything, one caller at a time. Raises StorageDown, and then keeps what is not written."""
        async with self._flushing:
            while self.pending:
                await self._flush_batch(store, list(islice(self.pending.items(), BATCH)))

    async def _flush_batch(self, store: JobStore, batch: list[tuple[Fence, JobChange]]) -> None:
        stale = await store.settle([change for _, change in batch])
        for fence, _ in batch:
            del self.pending[fence]
        for index in stale:
            log.warning("the outcome of job %s came too late: its fence is stale", batch[index][0].job_id)
        metrics.STALE.inc(len(stale))
        self.on_written()

    def fences(self) -> list[Fence]:
        """What is still held until its outcome is written."""
        return list(self.pending)

    async def wait(self) -> None:
        """Returns once there is something to write."""
        if not self.pending:
            self._filled = trio.Event()
            await self._filled.wait()


async def acknowledge(outbox: Outbox, store: JobStore) -> None:
    """The body of the acknowledger process."""
    init_ack()
    while True:
        await outbox.wait()
        try:
            await outbox.flush(store)
        except StorageDown:
            await trio.sleep(RETRY_AFTER)
