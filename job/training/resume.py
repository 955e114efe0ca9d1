"""Finding the newest checkpoint that is whole, and continuing from it."""

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import Rejected, fetch
from job.errors import NotFoundError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What was loaded from a checkpoint, and the newer ones that were passed over."""

    record: Record
    value: T
    rejected: list[tuple[Record, Rejected]] = field(default_factory=list)


def load_newest(
    checkpoints: CheckpointStore,
    candidates: Collection[Record],
    load: Callable[[Path, Record], T],
    names: Collection[str] | None = None,
) -> Loaded[T]:
    """The first of `candidates` whose files are whole and which `load` accepts.

    Args:
        checkpoints: The run.
        candidates: Records in order of preference.
        load: Makes something of a folder with the verified files of a record; raises Rejected when they do not fit.
        names: Files that `load` needs; all when unset.

    Raises:
        NotFoundError: None of them is valid; says why for each.
    """
    rejected: list[tuple[Record, Rejected]] = []
    for record in candidates:
        with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
            try:
                value = load(fetch(checkpoints.objects, record, Path(folder), names), record)
            except Rejected as reason:
                rejected.append((record, reason))
            else:
                return Loaded(record, value, rejected)
    raise NotFoundError(nothing_valid(checkpoints, rejected))


def nothing_valid(checkpoints: CheckpointStore, rejected: Collection[tuple[Record, Rejected]]) -> str:
    """Why a run cannot be continued, and what a person can decide."""
    reasons = [f"step {record.step}: {reason}" for record, reason in rejected]
    reasons += [*checkpoints.log.damaged.values()]
    return (
        f"{checkpoints.objects.uri}: the run has records and none of its checkpoints is valid "
        f"({'; '.join(reasons)}); restore the bucket, or start over with --restart-from-scratch"
    )


def lost_everything(checkpoints: CheckpointStore) -> bool:
    """Whether records were damaged and no checkpoint is left: not the same as a fresh run."""
    records = checkpoints.records
    return bool(checkpoints.log.damaged) and not history.checkpoints(records) and not history.was_reset(records)
