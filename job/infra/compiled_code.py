"""What torch has compiled for a run: a folder on this machine and, where the config names an address, a copy there.

compiled/<purpose>.safetensors    each file of the folder as bytes, by its name; their SHA-256 in the metadata

A restart on another machine takes the copy and need not compile again. torch's own bundle would not do: it leaves out
what was compiled for a CPU. A copy is code, and whoever can write there has the job run it: so it lies at an address of
its own, and nothing is taken from a run's.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import structlog
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from job.errors import DataError, JobError
from job.infra.directory_store import DirectoryObjectStore
from job.infra.object_store import ObjectStore, is_key

KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps it
TOLD = os.environ.get(KEPT_IN)  # by whoever started this process, before anything in it told torch otherwise
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
        self.folder = folder / name
        self._here = DirectoryObjectStore(self.folder)
        self._store, self._key = store, f"compiled/{name}.safetensors"

    def take(self) -> bool:
        """Bring here what other machines have compiled, unless something is here; whether that was done.

        One process of the machine does it while the others wait. A store that fails is a warning: then this machine
        compiles.
        """
        if self._store is None:
            return False
        try:
            with _alone(self.folder):
                if self._names() or not (files := self._others()):
                    return False
                for name, content in files.items():
                    self._here.put(name, [content])
        except (JobError, OSError) as error:
            log.warning("compiled code not taken: this machine compiles", uri=self.uri, reason=str(error))
            return False
        log.info("compiled code taken from the shared cache", uri=self.uri, files=len(files))
        return True

    def offer(self) -> None:
        """Let other machines have what is here, if it is more than they have; a store that fails is a warning."""
        if self._store is None:
            return
        try:
            own = {name: self._here.read(name) for name in self._names()}
            others = self._others()
            if own.keys() <= others.keys():
                return
            self._store.put(self._key, [_pack({**others, **own})])
        except (JobError, OSError) as error:
            log.warning("compiled code not shared: other machines compile again", uri=self.uri, reason=str(error))
            return
        log.info("compiled code shared", uri=self.uri, files=len(own))

    @property
    def uri(self) -> str:
        """Where other machines look for it."""
        return f"{self._store.uri.rstrip('/')}/{self._key}" if self._store else ""

    def _names(self) -> list[str]:
        return [name for name in self._here.keys("") if not name.endswith(_NO_CODE)]

    def _others(self) -> dict[str, bytes]:
        """What other machines have; nothing when that is damaged, after a warning."""
        assert self._store is not None
        with tempfile.TemporaryDirectory(prefix="gpt-job-") as scratch:
            try:
                self._store.get(self._key, Path(scratch, "code"))
                return _unpack(Path(scratch, "code"))
            except KeyError:
                return {}
            except DataError as error:
                log.warning("shared compiled code is damaged and is made again", uri=self.uri, reason=str(error))
                return {}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
