"""An object store whose failed calls are counted; what it stores and answers is the inner one's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from job.errors import AccessError, StorageError
from job.infra.object_store import Content, Moved, ObjectStore, unwatched


class CountedStore:
    """Tells `failed` the verb of each call that ends with StorageError or AccessError, from whatever thread.

    Args:
        inner: The store.
        failed: Called with the verb before the error goes on its way; must not raise.
    """

    def __init__(self, inner: ObjectStore, failed: Callable[[str], None]) -> None:
        self.uri = inner.uri
        self._inner = inner
        self._failed = failed

    @contextmanager
    def _counted(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (StorageError, AccessError):
            self._failed(verb)
            raise

    def put(self, key: str, content: Content) -> str:
        with self._counted("put"):
            return self._inner.put(key, content)

    def create(self, key: str, content: bytes) -> bool:
        with self._counted("create"):
            return self._inner.create(key, content)

    def get(self, key: str, target: Path, moved: Moved = unwatched, resumable: bool = False) -> str:
        with self._counted("get"):
            return self._inner.get(key, target, moved, resumable)

    def version(self, key: str) -> str:
        with self._counted("version"):
            return self._inner.version(key)

    def digest(self, key: str) -> str:
        with self._counted("digest"):
            return self._inner.digest(key)

    def read(self, key: str) -> bytes:
        with self._counted("read"):
            return self._inner.read(key)

    def size(self, key: str) -> int:
        with self._counted("size"):
            return self._inner.size(key)

    def keys(self, prefix: str) -> list[str]:
        with self._counted("keys"):
            return self._inner.keys(prefix)

    def delete(self, key: str) -> None:
        with self._counted("delete"):
            self._inner.delete(key)

    def unfinished(self, prefix: str) -> list[str]:
        with self._counted("unfinished"):
            return self._inner.unfinished(prefix)

    def abandon(self, key: str) -> None:
        with self._counted("abandon"):
            self._inner.abandon(key)
