"""Where outputs are kept: a folder of this machine (`folder`), or a bucket in Google Cloud Storage (`bucket`).

Both write a name once. The bucket's client is heavy, and is imported only where there is one.
"""

from persistence.artifacts.folder import FolderStore
from persistence.artifacts.links import LinkSigner

__all__ = ["FolderStore", "LinkSigner"]
