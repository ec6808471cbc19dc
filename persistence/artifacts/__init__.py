"""Where outputs are kept: a folder of this machine, or a bucket in Google Cloud Storage. Both write a name once."""

from persistence.artifacts.bucket import BucketStore
from persistence.artifacts.folder import FolderStore
from persistence.artifacts.links import LinkSigner

__all__ = ["BucketStore", "FolderStore", "LinkSigner"]
