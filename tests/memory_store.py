"""An object store in memory, held to the same contract as the real ones, for histories by the thousand."""

import hashlib
import threading
from pathlib import Path

from job.infra.object_store import Content, Moved, unwatched


class MemoryObjectStore:
    """Keeps objects in a dict; `copy` gives an independent store with the same content."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.uri = "memory://store"
        self.objects = dict(objects or {})
        self.begun: set[str] = set()  # keys of writes that a test says were cut
        self._lock = threading.Lock()

    def copy(self) -> "MemoryObjectStore":
        return MemoryObjectStore(self.objects)

    def put(self, key: str, content: Content) -> str:
        self.objects[key] = b"".join(content)
        return self.digest(key)

    def create(self, key: str, content: bytes) -> bool:
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = content
            return True

    def get(self, key: str, target: Path, moved: Moved = unwatched, resumable: bool = False) -> str:
        moved(target.write_bytes(self.objects[key]))
        return self.digest(key)

    def version(self, key: str) -> str:
        return self.digest(key)

    def digest(self, key: str) -> str:
        return hashlib.sha256(self.objects[key]).hexdigest()

    def read(self, key: str) -> bytes:
        return self.objects[key]

    def size(self, key: str) -> int:
        return len(self.objects[key])

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def unfinished(self, prefix: str) -> list[str]:
        return sorted(key for key in self.begun if key.startswith(prefix))

    def abandon(self, key: str) -> None:
        self.begun.discard(key)
