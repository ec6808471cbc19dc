"""Outputs in Google Cloud Storage: written once under a generation precondition, fetched by V4 signed links.

The official client blocks, so it runs in threads of a limited number. It retries nothing: who stores an output asks
again, later and later. Only the pieces of one large upload are sent again by the client, since to begin anew would send
all of them. STORAGE_EMULATOR_HOST leads it to an emulator.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import trio
from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.api_core.retry import Retry
from google.auth.credentials import Signing
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.cloud.storage import Blob, Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from engine.outputs.describe import INLINE
from engine.ports import Listed, StoredObject, StoreFailed

T = TypeVar("T")
LONGEST_LINK = 7 * 24 * 3600.0
"""Google signs for no longer than seven days."""
TIMEOUT = 60.0
PIECE = 8 * 1024 * 1024
"""Bytes of a large upload that are in memory, for each thread. Up to that much goes in one request."""
PIECES: Retry = DEFAULT_RETRY.with_delay(0.5, 8.0, 2.0).with_timeout(30.0)
PAGE = 500
TROUBLE = (GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, RequestException, HTTPError, OSError)


class BucketStore:
    """An ArtifactStore over a bucket. `threads` bounds how many transfers run at once; small calls have their own."""

    def __init__(self, client: Client, bucket: str, *, prefix: str = "", threads: int = 8) -> None:
        self._client = client
        self._bucket = client.bucket(bucket)
        self._prefix = prefix
        self._transfers = trio.CapacityLimiter(threads)
        self._calls = trio.CapacityLimiter(threads)
        self._signing = threading.Lock()

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        """Uploads a file unless the name is taken; what is there must then be the same. Raises StoreFailed."""
        return await self._run(lambda: self._put(name, source, content_type), self._transfers)

    async def url(self, name: str, expires_in: float) -> str:
        return await self._run(lambda: self._link(self._blob(name), min(expires_in, LONGEST_LINK)), self._calls)

    async def delete(self, name: str) -> None:
        """Removes an object; a missing one is fine. With a slash at its end: all below it. Raises StoreFailed."""
        await self._run(lambda: self._delete(name), self._calls)

    async def list(self, after: str, limit: int) -> tuple[Listed, ...]:
        """At most `limit` objects with names after `after`, in the order of their names. Raises StoreFailed."""
        return await self._run(lambda: tuple(self._list(after, limit)), self._calls)

    async def tidy(self, before: float) -> None:
        """Nothing: Google forgets uploads that were cut short, after a week."""

    async def _run(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        # A thread cannot be stopped. An abandoned upload may still finish: the name is final and its content the same,
        # so that harms nothing, and what nobody recorded is swept; its place is free again only when it ends.
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
        except TROUBLE as problem:
            raise StoreFailed(f"{_word(problem)} from Google Cloud Storage") from problem

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(self._prefix + name, chunk_size=PIECE)

    # --- in threads --------------------------------------------------------------------------------------

    def _put(self, name: str, source: Path, content_type: str) -> StoredObject:
        blob, size = self._blob(name), source.stat().st_size
        if content_type not in INLINE:
            blob.content_disposition = "attachment"
        try:
            blob.upload_from_filename(
                str(source),
                content_type=content_type,
                if_generation_match=0,
                checksum="crc32c",
                timeout=TIMEOUT,
                retry=PIECES if size > PIECE else None,
            )
        except PreconditionFailed:
            self._same(blob, source, size)
        return StoredObject(name, size, content_type)

    def _same(self, blob: Blob, source: Path, size: int) -> None:
        """The name is taken: by an earlier try whose answer was lost, or, which must never be, by something else."""
        blob.reload(timeout=TIMEOUT, retry=None)
        if blob.size != size or blob.crc32c not in (None, _crc32c(source)):
            raise StoreFailed("the name is taken by an object of other content in Google Cloud Storage")

    def _list(self, after: str, limit: int) -> Iterator[Listed]:
        blobs = self._client.list_blobs(
            self._bucket,
            prefix=self._prefix or None,
            start_offset=self._prefix + after or None,
            max_results=limit + 1,
            fields="items(name,size,updated),nextPageToken",
            timeout=TIMEOUT,
            retry=None,
        )
        found = (
            Listed(blob.name.removeprefix(self._prefix), int(blob.size), blob.updated.timestamp()) for blob in blobs
        )
        beyond = [each for each in found if each.name > after]
        yield from beyond[:limit]

    def _delete(self, name: str) -> None:
        if not name.endswith("/"):
            self._delete_one(self._blob(name))
            return
        for blob in self._client.list_blobs(self._bucket, prefix=self._prefix + name, timeout=TIMEOUT, retry=None):
            self._delete_one(blob)

    def _delete_one(self, blob: Blob) -> None:
        try:
            blob.delete(timeout=TIMEOUT, retry=None)
        except NotFound:
            return

    def _link(self, blob: Blob, seconds: float) -> str:
        credentials = blob.client._credentials
        if isinstance(credentials, Signing):
            return self._signed(blob, seconds)
        if hasattr(credentials, "service_account_email"):  # on Google's machines: signed by the IAM service
            with self._signing:  # one refresh for all who wait for it
                if not credentials.valid:
                    credentials.refresh(Request())
            return self._signed(
                blob, seconds, service_account_email=credentials.service_account_email, access_token=credentials.token
            )
        return str(blob.public_url)  # anonymous: an emulator, or a public bucket

    def _signed(self, blob: Blob, seconds: float, **signer: Any) -> str:
        return str(
            blob.generate_signed_url(expiration=timedelta(seconds=seconds), version="v4", method="GET", **signer)
        )


def open_bucket(name: str, threads: int = 8) -> BucketStore:
    """The bucket, with the credentials that Google's libraries find. Raises GoogleAuthError."""
    client = Client()
    connections = HTTPAdapter(pool_maxsize=2 * threads)  # one for each thread, or they would be closed and made anew
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, connections)
    return BucketStore(client, name, threads=threads)


def _crc32c(path: Path) -> str:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()


def _word(problem: BaseException) -> str:
    code = getattr(problem, "code", None)
    return f"{type(problem).__name__} {int(code)}" if isinstance(code, int) else type(problem).__name__
