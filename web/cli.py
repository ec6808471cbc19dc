"""The command line: `elwift serve`. Reads the settings, runs the application, and says plainly what stops it.

Exit status: 0 after an orderly stop, 1 when the server cannot start or had to give up, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import __version__
from engine.errors import UserError

OLDEST, NEWEST = (3, 11), (3, 13)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and answers its exit status."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return _say("Elwift needs Python 3.11, 3.12 or 3.13; this is " + sys.version.split()[0] + ".")
    options = _parser().parse_args(arguments)
    return _serve(options)


def _serve(options: argparse.Namespace) -> int:
    import trio

    from web import settings as s
    from web.serve import serve
    from web.telemetry import logs

    flags = {name: getattr(options, name) for name in ("host", "port", "data_dir", "database_url", "log_level")}
    problems: list[str] = []
    try:
        settings = s.load(options.config, **flags)
        logs.configure(settings.log_format, settings.log_level)
        # Ctrl-C must reach the application's own signal receiver, never whichever process happens to run.
        trio.run(serve, settings, _ready, restrict_keyboard_interrupt_to_checkpoints=True)
    except* UserError as refused:
        problems += [problem.message for problem in _each(refused)]
    return _say(" ".join(problems)) if problems else 0


def _each(problem: BaseException) -> Iterator[UserError]:
    """The user's errors in a group, however deep: nurseries wrap what goes through them."""
    if isinstance(problem, BaseExceptionGroup):
        for inner in problem.exceptions:
            yield from _each(inner)
    elif isinstance(problem, UserError):
        yield problem


def _ready(url: str) -> None:
    print(f"Elwift is ready: {url}", flush=True)


def _say(what: str) -> int:
    print("elwift:", " ".join(what.split()), file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elwift", description="AI requests as supervised, live processes.")
    parser.add_argument("--version", action="version", version=f"elwift {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server", description=_SERVE)
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=_port, help="port to listen on; 0 takes a free one (default 4000)")
    serve.add_argument("--data-dir", type=Path, metavar="DIR", help="where everything is kept")
    serve.add_argument("--database-url", metavar="URL", help="a PostgreSQL of yours instead of the embedded one")
    serve.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with a table [elwift]")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    return parser


_SERVE = """Runs the server until SIGTERM or Ctrl-C. Every setting can also stand in the environment as ELWIFT_NAME or
in the file given with --config; docs/operations.md lists them."""


def _port(word: str) -> int:
    number = int(word)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return number


if __name__ == "__main__":
    sys.exit(main())
