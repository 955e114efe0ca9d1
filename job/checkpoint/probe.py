"""Whether a store can keep the protocol's promises, asked before anything depends on them."""

import tempfile
from pathlib import Path

from job.errors import AccessError, ConfigError
from job.infra.object_store import ObjectStore

_READS = 5


def probe(objects: ObjectStore, attempt: str, single_writer_unsafe: bool = False) -> bool:
    """Try a conditional write, a read, a listing and a deletion; True when deleting is allowed.

    Args:
        objects: The store to try.
        attempt: Id of this attempt; names the object that is written and removed again.
        single_writer_unsafe: A person's word that nobody else writes: a store without conditional writes will do.

    Raises:
        ConfigError: The store overwrites instead of refusing, or does not show what was written.
    """
    key, content = f"probe/{attempt}", attempt.encode()
    first = objects.create(key, content) or _holds(objects, key, content)  # an answer that was lost, and a repetition
    second = objects.create(key, content)
    if (not first or second) and not single_writer_unsafe:
        raise ConfigError(
            f"{objects.uri}: the store does not honour conditional writes (If-None-Match: *), so two jobs could "
            "overwrite each other; use another store, or --single-writer-unsafe if nobody else ever writes here"
        )
    if not _holds(objects, key, content) or key not in objects.keys("probe/"):
        raise ConfigError(f"{objects.uri}: the store does not return or list what was just written")
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        objects.get(key, Path(folder) / "probe")
    try:
        objects.delete(key)
    except AccessError:
        return False
    return True


def _holds(objects: ObjectStore, key: str, content: bytes) -> bool:
    """Whether this is what is stored; what was bent on the way is read again."""
    return any(objects.read(key) == content for _ in range(_READS))
