"""Which process answers for a running task: only its own tasks may be interrupted on its account.

Lives here: `owner`. May import: the context, the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.otp.context import process_var

if TYPE_CHECKING:
    from engine.otp.process import Process


def owner(task: trio.lowlevel.Task) -> Process | None:
    """The living process whose root task this is, or descends from; None for everybody else.

    The context alone does not tell: a task that a process starts in somebody else's nursery inherits it, and may
    outlive the process.
    """
    process = task.context.get(process_var)
    if process is None or process.task is None:
        return None
    ancestor: trio.lowlevel.Task | None = task
    while ancestor is not None and ancestor is not process.task:
        nursery = ancestor.parent_nursery
        ancestor = None if nursery is None else nursery.parent_task
    return None if ancestor is None else process
