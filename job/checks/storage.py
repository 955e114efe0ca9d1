"""What the store lets this job do: every right that a run needs, tried on objects that are removed again."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from job.checks.finding import Finding, problem, size
from job.config import StorageConfig
from job.errors import AccessError, ConfigError, JobError, StorageError
from job.infra.object_store import ObjectStore
from job.infra.storage import open_store
from job.uris import local_folder

LEAST_PART = 5 << 20  # bytes; S3's least
_TRIES = 2  # of a request: a preflight has seconds
_CONTENT = b"a check of gpt-job"
_BROKEN = "the store does not keep what it acknowledges: use another one"
_RIGHTS = {
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "write once": "s3:PutObject",
    "write in parts": "s3:PutObject and s3:AbortMultipartUpload",
    "list unfinished uploads": "s3:ListBucketMultipartUploads (cut uploads cost until they are aborted)",
    "delete": "s3:DeleteObject (without it every checkpoint stays, and costs)",
}
_UPLOADS = "list unfinished uploads"
_TIMEOUTS = (3.0, 5.0)  # seconds to connect, and without an answer


def storage(about: str, uri: str, config: StorageConfig, single_writer_unsafe: bool = False) -> Iterator[Finding]:
    """What may be done below `uri`. An answer that does not come ends the questions; a refusal does not.

    Args:
        single_writer_unsafe: A person's word that nobody else writes: conditional writes are not needed.
    """
    quick = replace(config, part_size=LEAST_PART, timeouts=_TIMEOUTS, stall_seconds=None)
    folder = local_folder(uri)
    existed = folder is None or folder.exists()
    try:
        store = open_store(uri, quick, single_writer_unsafe=single_writer_unsafe, tries=_TRIES)
    except JobError as error:
        yield problem(about, error)
        return
    try:
        yield from _rights(about, store, single_writer_unsafe)
    finally:
        if folder and not existed:
            with suppress(OSError):
                folder.rmdir()


def _rights(about: str, store: ObjectStore, single_writer_unsafe: bool) -> Iterator[Finding]:
    """Try everything once; what depends on a write that was refused is not tried."""
    trial = _Trial(about, store, single_writer_unsafe)
    refused = trial.attempt("write", trial.write)
    if refused:
        yield refused
        if trial.useless or refused.code in (StorageError.exit_code, ConfigError.exit_code):
            return  # nobody answers, or nobody ever will: the other questions would get the same
    else:
        for right, action in (
            ("read", trial.read),
            ("list", trial.list),
            ("write once", trial.write_once),
            ("write in parts", trial.write_in_parts),
        ):
            if found := trial.attempt(right, action):
                yield found
    if found := trial.attempt(_UPLOADS, trial.list_uploads):
        yield replace(found, level="warning", code=0) if found.code == AccessError.exit_code else found
    yield from trial.remove()
    if trial.allowed:
        yield Finding(about=about, said=f"{store.uri}: may {', '.join(trial.allowed)}")


class _Trial:
    """One object of each kind, and what the store let be done with them."""

    def __init__(self, about: str, store: ObjectStore, single_writer_unsafe: bool) -> None:
        self._about, self._store, self._unsafe = about, store, single_writer_unsafe
        self._place = f"probe/check-{secrets.token_hex(8)}"
        self._small = f"{self._place}/small"
        self._written: list[str] = []
        self.allowed: list[str] = []
        self.useless = False  # to ask on: there is nothing to ask with

    def attempt(self, right: str, action: Callable[[], None]) -> Finding | None:
        """Do it; what is wrong with it, or None."""
        about = f"{self._about}: {right}"
        try:
            action()
        except JobError as error:
            self.useless = _without_credentials(error)
            return problem(about, error, _advice(right, error))
        except KeyError:
            return problem(about, ConfigError(f"{self._store.uri}: what was just written is not there"), _BROKEN)
        self.allowed.append(right)
        return None

    def write(self) -> None:
        self._store.put(self._small, [_CONTENT])
        self._written.append(self._small)

    def read(self) -> None:
        if self._store.read(self._small) != _CONTENT:
            raise ConfigError(f"{self._store.uri}: what was written came back as something else")

    def list(self) -> None:
        if self._small not in self._store.keys(f"{self._place}/"):
            raise ConfigError(f"{self._store.uri}: what was just written is not listed")

    def write_once(self) -> None:
        key = f"{self._place}/once"
        self._written.append(key)
        self._store.create(key, b"first")
        if self._store.create(key, b"second") and not self._unsafe:
            raise ConfigError(f"{self._store.uri}: the store overwrites where it should refuse (If-None-Match: *)")

    def write_in_parts(self) -> None:
        key, content = f"{self._place}/large", secrets.token_bytes(64) * (LEAST_PART // 64 + 1)
        self._written.append(key)
        sha256 = self._store.put(key, [content])
        if "read" in self.allowed and self._store.digest(key) != sha256:
            raise ConfigError(f"{self._store.uri}: {size(len(content))} written in parts came back as something else")

    def list_uploads(self) -> None:
        self._store.unfinished(f"{self._place}/")

    def remove(self) -> Iterator[Finding]:
        """Delete what was written; without that right a run keeps all its checkpoints."""
        left: dict[str, JobError] = {}
        for key in self._written:
            try:
                self._store.delete(key)
            except JobError as error:
                left[key] = error
        if not left:
            self.allowed += ["delete"] if self._written else []
            return
        first = next(iter(left.values()))
        said = f"{first}; left behind: {', '.join(left)}"
        about = f"{self._about}: delete"
        if isinstance(first, AccessError):
            yield Finding(about=about, level="warning", said=said, advice=_advice("delete", first))
        else:
            yield problem(about, StorageError(said))


def _without_credentials(error: JobError) -> bool:
    if "botocore" not in sys.modules:
        return False  # a folder wants none
    from job.infra.s3_errors import without_credentials  # noqa: PLC0415 - botocore is for those who have a bucket

    return without_credentials(error)


def _advice(right: str, error: JobError) -> str:
    if isinstance(error.__cause__, OSError):
        return ""
    if _without_credentials(error):
        return "give the job credentials: AWS_*, a profile, or the pod's web identity"
    if isinstance(error, AccessError):
        return f"allow {_RIGHTS[right]} below the run, to whom the credentials belong"
    if isinstance(error, ConfigError) and right == "write once":
        return "use a store with conditional writes, or --single-writer-unsafe if nobody else ever writes there"
    return _BROKEN if isinstance(error, ConfigError) and right != "write" else ""
