"""Which checkpoints go, and that two verified ones stay whatever happens.

The order is: look at what is to stay, make sure the run is still ours, say in the log what goes, then delete it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import structlog

from job.checkpoint import history
from job.checkpoint.record import Record, term_of
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import Rejected, check, check_sizes
from job.config import CheckpointConfig
from job.errors import AccessError, StorageError

_ENOUGH = 2  # whole ones that must stay before anything goes

How = Literal["full", "head"]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ReadBack:
    """The newest of those that stay, as far as they were looked at: which are whole, and why the others are not."""

    whole: list[Record] = field(default_factory=list)
    rejected: list[tuple[Record, Rejected]] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        """Whether anything may go."""
        return len(self.whole) == _ENOUGH


@dataclass(slots=True)
class Pruned:
    """What one round of retention did."""

    gone: list[Record] = field(default_factory=list)
    rejected: dict[int, Rejected] = field(default_factory=dict)  # seq -> why it is not counted on
    objects: int = 0


class Retention:
    """Removes what is no longer wanted from a run that this attempt owns."""

    def __init__(self, checkpoints: CheckpointStore, config: CheckpointConfig) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._verified: set[int] = set()
        self._swept = False

    def run(self) -> Pruned:
        """Prune what is due; does nothing when nothing is, or when too little of the rest can be verified.

        Raises:
            FencedError: The run has been taken over; nothing was deleted.
        """
        outcome = Pruned()
        due = self._due()
        if not due:
            return outcome
        staying = [record for record in history.checkpoints(self._checkpoints.records) if record not in due]
        found = read_back(self._checkpoints, staying, self._config.verify, self._verified)
        self._verified |= {record.seq for record in found.whole}
        outcome.rejected = {record.seq: reason for record, reason in found.rejected}
        if not found.enough:
            return outcome
        self._checkpoints.assert_owner()
        self._checkpoints.prune(due)
        outcome.gone = due
        for record in due:
            outcome.objects += self._delete([stored.key for stored in record.objects])
        if not self._swept:
            outcome.objects += self._sweep()
            self._abandon_cut_writes()
            self._swept = True
        return outcome

    def _due(self) -> list[Record]:
        config = self._config
        return history.prunable(self._checkpoints.records, config.keep_last, config.keep_every, config.keep_best)

    def _sweep(self) -> int:
        """Delete data of earlier attempts that no standing record names: cut saves and cut deletions."""
        if self._checkpoints.log.damaged:
            return 0  # a record that cannot be read may name it
        standing = history.unpruned(self._checkpoints.records)
        named = {stored.key for record in standing for stored in record.objects}
        keys = self._checkpoints.objects.keys("data/")
        return self._delete([key for key in keys if key not in named and self._is_of_an_earlier_term(key)])

    def _abandon_cut_writes(self) -> None:
        """Free what earlier attempts began to write and never finished: parts of uploads, half-written files.

        It is invisible and only costs money, so a store that does not let us is no reason to end.
        """
        objects = self._checkpoints.objects
        try:
            for key in filter(self._is_of_an_earlier_term, objects.unfinished("")):
                objects.abandon(key)
        except (AccessError, StorageError) as error:
            log.warning("unfinished uploads of earlier attempts stay, and may cost money", reason=str(error))

    def _is_of_an_earlier_term(self, key: str) -> bool:
        """Whether an attempt before this one wrote, or would have written, this object of the run."""
        term = term_of(key)
        return term is not None and term < (self._checkpoints.term or 0)

    def _delete(self, keys: list[str]) -> int:
        for key in keys:
            self._checkpoints.objects.delete(key)
        return len(keys)


def read_back(
    checkpoints: CheckpointStore, staying: Sequence[Record], how: How, known: Collection[int] = ()
) -> ReadBack:
    """Verify the newest of those that stay until enough are whole, which is two.

    Args:
        checkpoints: The run.
        staying: Those that are to stay, oldest first.
        how: In full, or sizes only.
        known: seqs of those that have been verified before.
    """
    found = ReadBack()
    for record in reversed(staying):
        try:
            if record.seq not in known:
                verify(checkpoints, record, how)
        except Rejected as rejected:
            found.rejected.append((record, rejected))
            continue
        found.whole.append(record)
        if found.enough:
            break
    return found


def verify(checkpoints: CheckpointStore, record: Record, how: How) -> None:
    """Read a checkpoint back and hash it, or only compare sizes. Raises Rejected."""
    if how == "head":
        check_sizes(checkpoints.objects, record)
        return
    check(checkpoints.objects, record)
