"""The last resort: an event loop that does not turn at all ends its OS process, all stacks dumped.

Lives here: `deadline_armed`. May import: trio, the standard library.

A call into C that never gives the interpreter back stops signals too: nothing written in Python can run any more. What
still can is a thread of the interpreter's own that waits for a date and needs no interpreter to dump the stacks and end
the process (`faulthandler`). The loop puts the date off for as long as it turns. To be used under something that starts
the process again; known heavy work belongs in a worker process in the first place.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_REARMS: Final = 4


@contextmanager
def deadline_armed(seconds: float) -> Iterator[None]:
    """Within it, a loop that stands still for `seconds`, or nearly so long, ends the OS process with status 1.

    The stacks of all threads go to stderr. There is one such date in an OS process, which others may want as well.
    """
    if not seconds > 0:
        raise ValueError("the deadline is a positive number of seconds")
    scope = trio.CancelScope()

    async def put_off() -> None:
        with scope:
            while not scope.cancel_called:  # it may start when all is over
                faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
                await trio.sleep(seconds / _REARMS)

    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    trio.lowlevel.spawn_system_task(put_off)
    try:
        yield
    finally:
        scope.cancel()
        faulthandler.cancel_dump_traceback_later()
