"""Where bytes are kept: one seam to the outside, and its implementation on a folder.

The implementation on S3 is in `s3.py`; both keep the promises of `ObjectStore`, and one test suite holds them to it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Content = Sequence[bytes | memoryview]  # an object's bytes, in pieces


class ObjectStore(Protocol):
    """A flat map from key to bytes. A key is visible only once it is whole.

    Every method raises AccessError when permission is refused (never KeyError: refused is not absent) and
    StorageError when storage does not answer or is full.
    """

    uri: str

    def put(self, key: str, content: Content) -> None:
        """Store `content` under `key`, durably, replacing what was there."""

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does. The only way to commit."""

    def get(self, key: str, target: Path) -> str:
        """Write the object to the file `target`; returns the SHA-256, in hex, of the bytes that arrived.

        Raises:
            KeyError: There is no such object.
        """

    def read(self, key: str) -> bytes:
        """The object whole, for small ones. KeyError when there is none."""

    def size(self, key: str) -> int:
        """Bytes of the object. KeyError when there is none."""

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted and complete, or an error."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""
