"""What an error of the database means: it is away, it was a passing clash, or what was to be written cannot be.

Pure. The classes are those of PostgreSQL's Appendix A. Whatever is not known to be a fault of the data is no reason to
refuse the data.
"""

from __future__ import annotations

import psycopg

AWAY = (
    "08",  # connection exceptions
    "25006",  # read-only: a standby that has not been promoted yet
    "25P03",  # we were too slow in a transaction, and lost the connection
    "25P04",
    "53",  # insufficient resources: disk full, out of memory, too many connections
    "57P",  # operator intervention: shutdown, crash, cannot connect now
    "58",  # system errors: input and output
    "XX",  # corrupted data or an internal error: not a fault of this row
)
PASSING = (
    "40",  # serialization failure, deadlock: the same transaction may succeed next time
    "55P03",  # lock not available in time
    "57014",  # cancelled, by somebody else or by the server's statement_timeout
)
DATA = (
    "21",  # a row twice in one statement
    "22",  # data exceptions: out of range, no such encoding, …
    "23",  # a constraint
    "44",  # a view's check
    "54",  # limits: too long for an index, nested too deeply
    "P0",  # raised by a trigger
)


def is_outage(problem: BaseException) -> bool:
    """Whether the same statement may succeed later, on this server or once it is back."""
    if not isinstance(problem, psycopg.Error):
        return isinstance(problem, OSError)
    state = problem.sqlstate
    if state is None:
        # raised by the driver itself: the connection is gone, or (InterfaceError) was closed under a user's hands
        return isinstance(problem, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(AWAY + PASSING)


def is_passing(problem: BaseException | None) -> bool:
    """Whether the database is there, and only this attempt came at a bad moment."""
    return isinstance(problem, psycopg.Error) and (problem.sqlstate or "").startswith(PASSING)


def is_locked(problem: BaseException | None) -> bool:
    """Whether somebody holds a lock for longer than we wait."""
    return isinstance(problem, psycopg.Error) and problem.sqlstate == "55P03"


def concerns_all(problem: BaseException | None) -> bool:
    """Whether whatever was written would have failed, so that there is no sense in trying it in parts."""
    state = problem.sqlstate if isinstance(problem, psycopg.Error) else None
    return state is None or state.startswith(("08", "25", "53", "57P", "58"))


def blames_the_data(problem: BaseException) -> bool:
    """Whether the same rows will fail again on any server. An error of ours in making them is such a fault, too."""
    if not isinstance(problem, psycopg.Error):
        return not isinstance(problem, OSError)
    state = problem.sqlstate
    return state.startswith(DATA) if state else not is_outage(problem)
