"""Which errors mean that the database is away (wait, and try again) and which that the statement is wrong.

Pure. The classes are those of PostgreSQL's Appendix A.
"""

from __future__ import annotations

import psycopg

AWAY = (
    "08",  # connection exceptions
    "53",  # insufficient resources: disk full, out of memory, too many connections
    "57P",  # operator intervention: shutdown, crash, cannot connect now
    "58",  # system errors: input and output
    "25006",  # read-only: a standby that has not been promoted yet
    "XX",  # corrupted data or an internal error: not a fault of this row
)
REPEAT = (
    "40",  # serialization failure, deadlock: the same transaction may succeed next time
    "55P03",  # lock not available
)


def is_outage(problem: BaseException) -> bool:
    """Whether the same statement may succeed later, on this server or once it is back."""
    if not isinstance(problem, psycopg.Error):
        return isinstance(problem, OSError)
    state = problem.sqlstate
    if state is None:
        # raised by the driver itself: the connection is gone, or (InterfaceError) was closed under a user's hands
        return isinstance(problem, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(AWAY + REPEAT)
