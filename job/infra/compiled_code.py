"""What torch has compiled for a run: a folder on this machine and, where the config names an address, a copy there.

compiled/<purpose>.safetensors    each file of the folder as bytes, by its name; their SHA-256 in the metadata

A restart on another machine takes the copy and need not compile again. torch's own bundle would not do: it leaves out
what was compiled for a CPU. A copy is code, and whoever can write there has the job run it: so it lies at an address of
its own, and nothing is taken from a run's.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import structlog
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from job.errors import AccessError, DataError, StorageError
from job.infra.object_store import ObjectStore, folder_errors, is_key

KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps it; who sets this has said where
_NO_CODE = (".lock", ".tmp")

log = structlog.get_logger(__name__)


class CompiledCode:
    """What was compiled for one purpose.

    Args:
        folder: Where that of every purpose lies on this machine.
        purpose: Everything that code for one run may not share with another's: versions, processor, shapes.
        store: Where other machines look for it; None: nowhere.
    """

    def __init__(self, folder: Path, purpose: Mapping[str, object], store: ObjectStore | None = None) -> None:
        name = hashlib.sha256(json.dumps(purpose, sort_keys=True).encode()).hexdigest()
        self.folder = Path(os.environ.get(KEPT_IN) or folder / name)
        self._store, self._key = store, f"compiled/{name}.safetensors"
        self._shared: set[str] = set()

    def take(self) -> None:
        """Bring here what another machine has compiled, if it is there and whole; a store that fails is a warning."""
        if self._store is None:
            return
        try:
            with tempfile.TemporaryDirectory(prefix="gpt-job-") as scratch:
                self._store.get(self._key, Path(scratch, "code"))
                files = _unpack(Path(scratch, "code"))
            for name, content in files.items():
                _write(self.folder / name, content)
        except KeyError:
            return
        except (StorageError, AccessError, DataError, OSError) as error:
            log.warning("compiled code not taken: this machine compiles", uri=self._uri, reason=str(error))
            return
        self._shared = set(files)
        log.info("compiled code taken from the shared cache", uri=self._uri, files=len(files))

    def offer(self) -> None:
        """Let other machines have the folder's code, if it is more than they have; a store that fails is a warning."""
        if self._store is None:
            return
        try:
            with folder_errors(f"read {self.folder}"):
                files = {name: path.read_bytes() for name, path in sorted(self._found().items())}
            if files.keys() <= self._shared:
                return
            self._store.put(self._key, [_pack(files)])
        except (StorageError, AccessError) as error:
            log.warning("compiled code not shared: other machines compile again", uri=self._uri, reason=str(error))
            return
        self._shared = set(files)
        log.info("compiled code shared", uri=self._uri, files=len(files))

    @property
    def _uri(self) -> str:
        return f"{self._store.uri.rstrip('/')}/{self._key}" if self._store else ""

    def _found(self) -> dict[str, Path]:
        names = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return {name: path for name, path in names.items() if is_key(name) and path.suffix not in _NO_CODE}


def _pack(files: Mapping[str, bytes]) -> bytes:
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in files.items()}
    return save(arrays, {"sha256": _digest(files)})


def _unpack(path: Path) -> dict[str, bytes]:
    """The files of a pack. DataError when they are not those that were packed, or have names that lead elsewhere."""
    try:
        with safe_open(path, "np") as pack:
            files = {name: pack.get_tensor(name).tobytes() for name in pack.keys()}  # noqa: SIM118 - no mapping
            expected = (pack.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise DataError(f"damaged: {error}") from error
    if strange := [name for name in files if not is_key(name)]:
        raise DataError(f"{strange[0]!r} is no name of a file")
    if (found := _digest(files)) != expected:
        raise DataError(f"damaged: expected sha256 {expected}, got {found}")
    return files


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return total.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Put a file in its place at once: another process may be looking for it."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    new.write_bytes(content)
    new.replace(path)
