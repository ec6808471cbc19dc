"""The local model's place in the tree: a keeper that owns the OS process, a board that knows where it answers.

The keeper starts the process again whenever it ends, later each time that it ends soon. It does not crash for that: a
model that cannot run here must not take other models down. Those who need the address ask the board, and wait there
while the model loads. May import `engine.otp` and `model_server`.
"""

from __future__ import annotations

import structlog
import trio
from attrs import evolve, frozen

from engine import telemetry
from engine.otp import (
    REST_FOR_ONE,
    CallFailed,
    ChildSpec,
    From,
    GenServer,
    NoReply,
    Ok,
    Reply,
    Request,
    Start,
    Supervisor,
    call,
    cast,
    init_ack,
    reply,
    worker,
)
from engine.otp.child_spec import Backoff
from engine.providers.local import ModelServerDown
from engine.providers.model_server import STOP_TIMEOUT, ModelServerSettings, live_once

log = structlog.get_logger(__name__)

BOARD = "local model"
"""The board's name on the node."""
WAIT = 30.0
"""Seconds that a request waits for a model that is loading."""
BACKOFF = Backoff(initial=0.2, maximum=30.0)
SETTLED_AFTER = 60.0
"""After a life of so many seconds the next restart is as quick as the first."""


@frozen
class WhereIs(Request[str]):
    """The server's base URL, once it answers."""


@frozen
class Up:
    address: str


@frozen
class Down:
    reason: str


@frozen
class Board:
    """`address` is None while the server is down; then `waiting` are those who asked."""

    address: str | None = None
    reason: str | None = None
    waiting: tuple[From, ...] = ()


class BoardServer(GenServer[Board]):
    """Knows where the model server answers."""

    async def init(self) -> Ok[Board]:
        telemetry.MODEL_SERVER_UP.set(0)
        return Ok(Board())

    async def handle_call(self, request: WhereIs, caller: From, board: Board) -> Reply[Board] | NoReply[Board]:
        if board.address is not None:
            return Reply(board.address, board)
        return NoReply(evolve(board, waiting=(*board.waiting, caller)))

    async def handle_cast(self, message: Up | Down, board: Board) -> NoReply[Board]:
        telemetry.MODEL_SERVER_UP.set(isinstance(message, Up))
        if isinstance(message, Down):
            return NoReply(evolve(board, address=None, reason=message.reason))
        for caller in board.waiting:
            reply(caller, message.address)
        return NoReply(Board(message.address))

    def format_status(self, board: Board) -> object:
        return {"address": board.address, "down_because": board.reason, "waiting": len(board.waiting)}


async def keep(settings: ModelServerSettings) -> None:
    """Lives of the OS process, one after another, until this process is ended; then so is it."""
    init_ack()
    failures = 0
    while True:
        began, reason = trio.current_time(), "its keeper ended"
        try:
            reason = await live_once(settings, lambda address: cast(BOARD, Up(address)))
        finally:
            cast(BOARD, Down(reason))
        failures = 1 if trio.current_time() - began > SETTLED_AFTER else failures + 1
        pause = BACKOFF.delay(failures - 1)
        log.error("local model ended", reason=reason, restart_in=round(pause, 2))
        telemetry.MODEL_SERVER_RESTARTS.inc()
        await trio.sleep(pause)


def spec(settings: ModelServerSettings) -> ChildSpec:
    """The subtree "local_model"."""
    keeper = Start.process(keep, settings, name="local model keeper")
    children = [
        worker(BoardServer, id="board", name=BOARD),
        ChildSpec(id="keeper", start=keeper, shutdown=STOP_TIMEOUT + 1),
    ]
    return Supervisor.spec(children, strategy=REST_FOR_ONE, id="local_model", name="local_model")


async def address() -> str:
    """The model server's base URL, waiting for it while it loads. Raises ModelServerDown."""
    try:
        return await call(BOARD, WhereIs(), WAIT)
    except CallFailed as failed:
        raise ModelServerDown from failed
