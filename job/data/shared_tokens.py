"""Token files on the object store, so that many machines tokenize a corpus once.

tokens/<fingerprint>/<random>/...   the files of one machine
tokens/<fingerprint>/files.json     which machine's are to be used, with size and hash of each; written last

Two machines that start together both tokenize; whose list comes second removes its own files again. A list names
files of one machine only, so they are never mixed.
"""

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from job.data.cache import Advance
from job.errors import AccessError, DataError, StorageError
from job.infra.object_store import ObjectStore, folder_errors

LIST = "files.json"
FORMAT = 1

log = structlog.get_logger(__name__)


class SharedTokens:
    """What a store has of the token files of one fingerprint."""

    def __init__(self, store: ObjectStore, fingerprint: str) -> None:
        self._store, self._prefix = store, f"tokens/{fingerprint}"
        self.uri = f"{store.uri.rstrip('/')}/{self._prefix}"

    def complete(self) -> bool:
        """Whether they are there for others to take. StorageError and AccessError as the store raises them."""
        return self._list() is not None

    def fetch(self, folder: Path, advance: Advance) -> bool:
        """Bring them into the folder, each held to its hash; whether they were there, and whole.

        Raises:
            StorageError, AccessError: The store does not answer, or refuses: that is not absence.
        """
        facts = self._list()
        if facts is None:
            return False
        try:
            for file in facts["files"]:
                advance()
                key = f"{self._prefix}/{facts['folder']}/{file['name']}"
                found = self._store.get(key, folder / file["name"], resumable=True)
                if found != file["sha256"]:
                    raise DataError(f"{file['name']}: expected sha256 {file['sha256']}, got {found}")
        except (DataError, KeyError, TypeError) as error:
            log.warning("shared token files are damaged and are made again", uri=self.uri, reason=str(error))
            self._store.delete(f"{self._prefix}/{LIST}")
            return False
        log.info("token files taken from the shared cache", uri=self.uri, files=len(facts["files"]))
        return True

    def offer(self, folder: Path, advance: Advance) -> None:
        """Let others have the folder's files, unless there are some; a store that refuses them is a warning."""
        try:
            if self.complete():
                return
            own = secrets.token_hex(8)
            files = [self._put(f"{self._prefix}/{own}/{path.name}", path, advance) for path in sorted(folder.iterdir())]
            content = json.dumps({"format": FORMAT, "folder": own, "files": files}, indent=1).encode()
            if self._store.create(f"{self._prefix}/{LIST}", content):
                log.info("token files shared", uri=self.uri, files=len(files))
                return
            log.info("another machine has shared the same token files meanwhile", uri=self.uri)
            for file in files:
                self._store.delete(f"{self._prefix}/{own}/{file['name']}")
        except (StorageError, AccessError) as error:
            log.warning("token files not shared: they are on this machine alone", uri=self.uri, reason=str(error))

    def _put(self, key: str, path: Path, advance: Advance) -> dict[str, Any]:
        advance()
        with folder_errors(f"read {path}"):
            content = np.memmap(path, np.uint8, mode="r").data
        sha256 = self._store.put(key, [content])
        return {"name": path.name, "size": path.stat().st_size, "sha256": sha256}

    def _list(self) -> dict[str, Any] | None:
        """The list, if there is one that this job can read."""
        try:
            facts = json.loads(self._store.read(f"{self._prefix}/{LIST}"))
            if facts["format"] != FORMAT:
                return None
            if any(Path(name).name != name for name in (facts["folder"], *(file["name"] for file in facts["files"]))):
                raise ValueError("a name leads elsewhere")
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("the list of shared token files is damaged and is made again", uri=self.uri, reason=str(error))
            self._store.delete(f"{self._prefix}/{LIST}")
            return None
        except KeyError:
            return None
        return dict(facts)
