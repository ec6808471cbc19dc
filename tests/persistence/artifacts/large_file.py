"""A large file from a provider's server into a bucket, and how much memory that took; prints one JSON object.

The two services are in processes of their own, so that their memory is not counted.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import uuid4

import psutil
import trio
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from engine.outputs import Outputs, Policy
from engine.outputs.fetch import Fetcher
from engine.providers.protocol import OutputReady
from persistence.artifacts.bucket import BucketStore
from tests.persistence.artifacts import fake_gcs

SIZE = 200 * 1024 * 1024


class File(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        block = bytes(range(256)) * 4096
        for _ in range(SIZE // len(block)):
            self.wfile.write(block)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(pipe: Connection) -> None:
    files = ThreadingHTTPServer(("127.0.0.1", 0), File)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    with fake_gcs.serving() as gcs:
        pipe.send((files.server_port, gcs.url))
        pipe.recv()
        pipe.send({name: hashlib.sha256(content).hexdigest() for name, content in gcs.contents().items()})
        pipe.send(sum(map(len, gcs.contents().values())))


async def main(folder: Path, port: int, url: str) -> tuple[str, int]:
    process, most = psutil.Process(), 0
    client = Client("project", AnonymousCredentials(), client_options={"api_endpoint": url})
    fetcher = Fetcher(Policy(private=(f"127.0.0.1:{port}",)))
    outputs = Outputs(BucketStore(client, "bucket"), {"cog": fetcher}, folder / "spool")
    before = process.memory_info().rss
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, process.memory_info().rss)
                await trio.sleep(0.01)

        nursery.start_soon(watch)
        attempt = uuid4()
        spooled = await outputs.fetch("cog", attempt, OutputReady(0, url=f"http://127.0.0.1:{port}/film"))
        kept = await outputs.keep(uuid4(), 1, attempt, spooled, 0.0)
        nursery.cancel_scope.cancel()
    await outputs.aclose()
    return kept.sha256, most - before


if __name__ == "__main__":
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,))
    child.start()
    sha256, grown = trio.run(main, Path(sys.argv[1]), *mine.recv())
    mine.send("done")
    (stored,) = mine.recv().values()
    assert stored == sha256
    print(json.dumps({"size": SIZE, "stored": mine.recv(), "grown": grown}))
    child.join()
