"""Outputs in Google Cloud Storage: written once under a generation precondition, fetched by V4 signed links.

The official client blocks, so it runs in threads of a limited number. STORAGE_EMULATOR_HOST leads it to an emulator.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import trio
from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.auth.credentials import Signing
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.cloud.storage import Blob, Client
from requests.exceptions import RequestException

from engine.outputs.describe import INLINE
from engine.ports import StoredObject, StoreFailed

T = TypeVar("T")
LONGEST_LINK = 7 * 24 * 3600.0
"""Google signs for no longer than seven days."""
TIMEOUT = 60.0


class BucketStore:
    """An ArtifactStore over a bucket. `threads` bounds how many transfers run at once."""

    def __init__(self, client: Client, bucket: str, *, prefix: str = "", threads: int = 8) -> None:
        self._bucket = client.bucket(bucket)
        self._prefix = prefix
        self._limiter = trio.CapacityLimiter(threads)

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        """Uploads a file unless the name is taken; what is there must then be the same. Raises StoreFailed."""
        return await self._run(lambda: self._put(name, source, content_type))

    async def url(self, name: str, expires_in: float) -> str:
        return await self._run(lambda: self._link(self._blob(name), min(expires_in, LONGEST_LINK)))

    async def delete(self, name: str) -> None:
        await self._run(lambda: self._delete(self._blob(name)))

    async def _run(self, work: Callable[[], T]) -> T:
        # An abandoned upload may still finish: the name is final and its content the same, so that harms nothing.
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except (GoogleAPIError, GoogleAuthError, RequestException, OSError) as problem:
            raise StoreFailed(f"{type(problem).__name__} from Google Cloud Storage") from problem

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(self._prefix + name)

    def _put(self, name: str, source: Path, content_type: str) -> StoredObject:
        blob = self._blob(name)
        if content_type not in INLINE:
            blob.content_disposition = "attachment"
        try:
            blob.upload_from_filename(
                str(source), content_type=content_type, if_generation_match=0, checksum="crc32c", timeout=TIMEOUT
            )
        except PreconditionFailed:
            blob.reload(timeout=TIMEOUT)
            if blob.size != source.stat().st_size:
                raise StoreFailed(f"{name} is taken by an object of another size") from None
        return StoredObject(name, int(blob.size or 0), content_type)

    def _link(self, blob: Blob, seconds: float) -> str:
        credentials = blob.client._credentials
        if isinstance(credentials, Signing):
            return self._signed(blob, seconds)
        if hasattr(credentials, "service_account_email"):  # on Google's machines: signed by the IAM service
            credentials.refresh(Request())
            return self._signed(
                blob, seconds, service_account_email=credentials.service_account_email, access_token=credentials.token
            )
        return str(blob.public_url)  # anonymous: an emulator, or a public bucket

    def _signed(self, blob: Blob, seconds: float, **signer: Any) -> str:
        return str(
            blob.generate_signed_url(expiration=timedelta(seconds=seconds), version="v4", method="GET", **signer)
        )

    def _delete(self, blob: Blob) -> None:
        try:
            blob.delete(timeout=TIMEOUT)
        except NotFound:
            return
