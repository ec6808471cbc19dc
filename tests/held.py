"""Keeps an async context open in a thread of its own, so that a whole module of tests can share a server or a browser.

pytest-trio's fixtures live as long as one test; starting a database, a server and a browser for each would cost more
than the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from queue import SimpleQueue
from typing import TypeVar

import trio

T = TypeVar("T")


@contextmanager
def held(opened: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Enters `opened()` on a trio loop in a thread; leaves it, and ends the thread, at the end of the block.

    Raises what entering or leaving it raised.
    """
    ready: SimpleQueue[T | BaseException] = SimpleQueue()
    release: list[Callable[[], None]] = []
    failed: list[BaseException] = []

    async def hold() -> None:
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with opened() as value:
            release.append(lambda: trio.from_thread.run_sync(over.set, trio_token=token))
            ready.put(value)
            await over.wait()

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked
            failed.append(error)
            ready.put(error)

    thread = threading.Thread(target=run, name="held")
    thread.start()
    value = ready.get()
    if isinstance(value, BaseException):
        thread.join()
        raise value
    try:
        yield value
    finally:
        release[0]()
        thread.join()
    if failed:
        raise failed[0]
