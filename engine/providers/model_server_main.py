"""The local model's own OS process: llama.cpp behind an OpenAI-compatible HTTP API, on loopback.

Run as `python -m engine.providers.model_server_main`, with its settings as JSON in the first argument; started and
watched by `model_server`. It prints one line of JSON, `{"address": "http://127.0.0.1:…"}`, once it listens. It ends on
SIGTERM, SIGINT, or when its parent is gone: its standard input, a pipe from the parent, is at its end then.

Imports nothing of ours, so that the child stays small.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

PR_SET_PDEATHSIG = 1
PARENT_MAY_BE_GONE = signal.SIGUSR1
ENDINGS = {signal.SIGTERM, signal.SIGINT, PARENT_MAY_BE_GONE}


def main() -> None:
    """Serves until told to end."""
    parent = os.getppid()
    # Before the server starts its threads, which inherit the mask: else one of them might take the signal, and die.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    ask_for_a_signal_when_the_parent_ends()
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    server = start_server(json.loads(sys.argv[1]))
    print(json.dumps({"address": server.listening_address}), flush=True)
    # The kernel speaks of the *thread* that forked us, which may end while its process lives: look again.
    while signal.sigwait(ENDINGS) == PARENT_MAY_BE_GONE and os.getppid() == parent:
        pass
    end()


def start_server(settings: dict[str, Any]) -> Any:
    """A listening server: it binds loopback and a port of the system's choice."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["weights"]
    params.model_alias = [settings["alias"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.ui = False
    params.offline = True
    params.endpoint_slots = False
    params.endpoint_props = False
    params.verbosity = 0
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["context"]
    params.kv_unified = True  # slots share the context, so that one long request may have it all
    params.cache_ram_mib = settings["prompt_cache_mib"]
    params.n_threads_http = settings["parallel"] + 4
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    return xllamacpp.Server(params)


def end_with_standard_input() -> None:
    """Nothing is ever written to us: a read returns when the parent closed the pipe, or died."""
    while os.read(0, 4096):
        pass
    end()


def ask_for_a_signal_when_the_parent_ends() -> None:
    """A second net, for Linux; elsewhere standard input is the only one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, PARENT_MAY_BE_GONE, 0, 0, 0)


def end() -> None:
    """Ends at once: there is nothing to save, and the server's own destructor waits for open requests."""
    os._exit(0)


if __name__ == "__main__":
    main()
