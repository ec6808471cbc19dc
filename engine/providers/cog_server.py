"""A Cog model server of ours: started from a model's folder, watched, and started again when it ends or falls ill.

The server's port is chosen before its first life and kept, so the provider's address of it holds. Whether it is up is
the provider's to find out, as of any other Cog server. May import `engine.otp`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from socket import create_server

import httpx
import structlog
import trio
from attrs import field, frozen

from engine.errors import UserError
from engine.otp import ChildSpec, Start, init_ack
from engine.otp.child_spec import Backoff
from engine.providers.cog_wire import ILL, UNREACHABLE, Health, Life, Server, read_health

log = structlog.get_logger("elwift.cog")
CHECK_TIMEOUT = 5.0
CHECKS_MISSED = 3
STOP_TIMEOUT = 5.0
BACKOFF = Backoff(initial=0.2, maximum=60.0)
SETTLED_AFTER = 60.0
"""After a life of so many seconds the next restart is as quick as the first."""
SETUP_TIMEOUT = 900.0
SETUP_GRACE = 5.0
"""Seconds that the server has beyond its deadline to say itself that the setup took too long."""
LAST_WORDS = "elwift: "
_PREDICT = re.compile(r"^(?:predict|run):\s*[\"']?([^\"'\s#]+)", re.MULTILINE)
_SLOTS = re.compile(r"^concurrency:[^\n]*\n(?:[ \t]+[^\n]*\n|[ \t]*#[^\n]*\n)*?[ \t]+max:\s*([1-9]\d*)", re.MULTILINE)


@frozen
class CogFolder:
    """A model's folder, with `cog.yaml`; `python` is an interpreter that has cog and what the model needs. `slots`: how
    many predictions it takes at once. `setup_timeout`: seconds from a start until it is ready."""

    name: str
    folder: Path
    python: str
    predictor: str
    port: int
    slots: int = 1
    setup_timeout: float = SETUP_TIMEOUT
    life: Life = field(factory=Life)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def server(self) -> Server:
        """As the provider knows it."""
        return Server(self.name, self.url, self.slots, self.life)


def cog_folder(name: str, folder: Path, setup_timeout: float = SETUP_TIMEOUT) -> CogFolder:
    """Looks at a model's folder. Its interpreter is that of its `.venv`, or `python3`. Raises UserError."""
    try:
        described = (folder / "cog.yaml").read_text()
    except (OSError, UnicodeError) as problem:
        raise UserError("bad_settings", f"The Cog model {name} has no readable cog.yaml in {folder}.") from problem
    predictor, slots = _PREDICT.search(described), _SLOTS.search(f"{described}\n")
    if predictor is None:
        raise UserError("bad_settings", f"The cog.yaml of {name} does not say what `predict` is.")
    own = folder / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else shutil.which("python3") or sys.executable
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    most = int(slots[1]) if slots else 1
    return CogFolder(name, folder.resolve(), python, predictor[1], port, most, setup_timeout)


def spec(model: CogFolder, check_every: float = 2.0) -> ChildSpec:
    """The child that keeps the server alive. `check_every`: seconds between two looks at its health."""
    start = Start.process(keep, model, check_every, name=f"cog {model.name}")
    return ChildSpec(id=f"cog {model.name}", start=start, shutdown=STOP_TIMEOUT + 1)


async def keep(model: CogFolder, check_every: float) -> None:
    """The process that keeps the server alive; when it is ended, so is the server."""
    init_ack()
    await lives(model, check_every)


async def lives(model: CogFolder, check_every: float) -> None:
    """Lives of the server, one after another, until it is cancelled."""
    failures = 0
    while True:
        began = trio.current_time()
        model.life.vain += 1  # until it is ready
        reason = await live_once(model, check_every)
        failures = 1 if trio.current_time() - began > SETTLED_AFTER else failures + 1
        pause = BACKOFF.delay(failures - 1)
        log.error("cog server ended", model=model.name, reason=reason, restart_in=round(pause, 2))
        await trio.sleep(pause)


async def live_once(model: CogFolder, check_every: float) -> str:
    """One life of the server, and why it ended. Cancelled, it stops the server and all that it started."""
    try:
        process = await _start(model)
    except OSError as problem:
        return f"it cannot be started: {problem.strerror}"
    last_words: deque[str] = deque(maxlen=5)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, last_words)
            reason = await _until_bad(process, model, check_every)
            nursery.cancel_scope.deadline = trio.current_time() + 1  # for its last words, if it has ended
    finally:
        await _stop(process)
    return f"{reason} ({last_words[-1]})" if last_words else reason


async def _start(model: CogFolder) -> trio.Process:
    """Our settings, with the keys among them, are not for the model."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ELWIFT_")}
    environment = {
        **inherited,
        "PATH": f"{Path(model.python).parent}{os.pathsep}{inherited.get('PATH', '')}",  # it starts `python` itself
        "PORT": str(model.port),
        "COG_PREDICT_TYPE_STUB": model.predictor,
        "COG_MAX_CONCURRENCY": str(model.slots),
        "COG_SETUP_TIMEOUT": str(max(1, round(model.setup_timeout))),
    }
    main = str(Path(__file__).with_name("cog_server_main.py"))
    server = [model.python, "-m", "cog.server.http", "--host", "127.0.0.1"]
    return await trio.lowlevel.open_process(
        [sys.executable, main, *server],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=model.folder,
        env=environment,
        start_new_session=True,
    )


async def _listen(process: trio.Process, last_words: deque[str]) -> None:
    """Reads what it says, so that the pipe never fills. A model may print prompts: only how it ended is kept."""
    assert process.stderr is not None
    async for chunk in process.stderr:
        lines = chunk.decode("utf-8", "replace").splitlines()
        last_words.extend(line[len(LAST_WORDS) : 200] for line in lines if line.startswith(LAST_WORDS))


async def _until_bad(process: trio.Process, model: CogFolder, check_every: float) -> str:
    """Waits until the server ends, says that it is ill, is silent after it had answered, or does not get ready in time;
    says which."""
    missed, answered, ready = 0, False, False
    limit = trio.current_time() + model.setup_timeout + SETUP_GRACE
    async with httpx.AsyncClient(timeout=CHECK_TIMEOUT, trust_env=False) as client:
        while missed < CHECKS_MISSED:
            with trio.move_on_after(check_every):
                await process.wait()
                return "it ended"
            health = await _health(client, model.url)
            if health.status in ILL:
                return _illness(health)
            if health.status in ("READY", "BUSY"):
                ready, model.life.vain = True, 0
            elif not ready and trio.current_time() > limit:
                return f"it was not ready within {model.setup_timeout:.0f} seconds"
            here = health.status != UNREACHABLE
            answered = answered or here
            missed = missed + 1 if answered and not here else 0
    return f"it missed {missed} health checks in a row"


def _illness(health: Health) -> str:
    """In its setup a model has seen no prompt yet, so what it printed may be repeated."""
    said = f": {health.last_words}" if health.status == "SETUP_FAILED" and health.last_words else ""
    return f"it is {health.status}{said}"


async def _health(client: httpx.AsyncClient, url: str) -> Health:
    with trio.move_on_after(CHECK_TIMEOUT):
        try:
            return read_health((await client.get(f"{url}/health-check")).json())
        except (httpx.HTTPError, ValueError):
            return Health(UNREACHABLE)
    return Health(UNREACHABLE)


async def _stop(process: trio.Process) -> None:
    """Closes the pipe that its parent reads, which then ends the session; and sees to it that all of it is gone."""
    with trio.CancelScope(shield=True):
        assert process.stdin is not None
        await process.stdin.aclose()
        with trio.move_on_after(STOP_TIMEOUT):
            await process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the session's group, also when its first process was killed alone
        await process.wait()  # no deadline: SIGKILL is not refused
        if process.stderr is not None:
            await process.stderr.aclose()
