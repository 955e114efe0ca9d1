"""Which checkpoints go, and that two verified ones stay whatever happens.

The order is: look at what is to stay, make sure the run is still ours, say in the log what goes, then delete it.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import Rejected, check_sizes, fetch
from job.config import CheckpointConfig

_VERIFIED = 2


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
        if self._verify_kept(due, outcome) < _VERIFIED:
            return outcome
        self._checkpoints.assert_owner()
        self._checkpoints.prune(due)
        outcome.gone = due
        for record in due:
            outcome.objects += self._delete([stored.key for stored in record.objects])
        if not self._swept:
            outcome.objects += self._sweep()
            self._swept = True
        return outcome

    def _standing(self) -> list[Record]:
        return history.checkpoints(self._checkpoints.records)

    def _due(self) -> list[Record]:
        config = self._config
        return history.prunable(self._checkpoints.records, config.keep_last, config.keep_every, config.keep_best)

    def _verify_kept(self, due: list[Record], outcome: Pruned) -> int:
        """Verify the newest of those that stay until two are whole; how many are."""
        going = {record.seq for record in due}
        kept = [record for record in reversed(self._standing()) if record.seq not in going]
        for record in kept:
            if record.seq not in self._verified and record.seq not in outcome.rejected:
                try:
                    verify(self._checkpoints, record, self._config.verify)
                except Rejected as rejected:
                    outcome.rejected[record.seq] = rejected
                    continue
                self._verified.add(record.seq)
            if len(self._verified & {r.seq for r in kept}) == _VERIFIED:
                break
        return len(self._verified & {r.seq for r in kept})

    def _sweep(self) -> int:
        """Delete data of earlier attempts that no standing record names: cut saves and cut deletions."""
        if self._checkpoints.log.damaged:
            return 0  # a record that cannot be read may name it
        pruned = {seq for r in self._checkpoints.records if r.kind == "prune" for seq in r.facts["pruned"]}
        records = [r for r in self._checkpoints.records if r.kind == "checkpoint" and r.seq not in pruned]
        named = {stored.key for record in records for stored in record.objects}
        own = self._checkpoints.term or 0
        keys = self._checkpoints.objects.keys("data/")
        return self._delete([key for key in keys if key not in named and _term(key) < own])

    def _delete(self, keys: list[str]) -> int:
        for key in keys:
            self._checkpoints.objects.delete(key)
        return len(keys)


def verify(checkpoints: CheckpointStore, record: Record, how: Literal["full", "head"]) -> None:
    """Read a checkpoint back and hash it, or only compare sizes. Raises Rejected."""
    if how == "head":
        check_sizes(checkpoints.objects, record)
        return
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        fetch(checkpoints.objects, record, Path(folder))


def _term(key: str) -> int:
    """Term in `data/<term>-<attempt>/...`; a key of another form is nobody's to delete."""
    digits = key.removeprefix("data/").partition("-")[0]
    return int(digits) if digits.isdigit() else 1 << 62
