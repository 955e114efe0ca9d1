"""The `checkpoints prune` command: what retention no longer wants goes, by a person's hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from job.checkpoint import history
from job.checkpoint.choice import open_run
from job.checkpoint.probe import probe
from job.checkpoint.record import Record
from job.checkpoint.retention import Retention, read_back
from job.checkpoint.store import CheckpointStore
from job.config import CheckpointConfig, Config
from job.config_file import stored_config
from job.errors import AccessError, DataError
from job.infra.environment import code_facts, owner_facts
from job.infra.storage import open_store

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants kept; None: as the run's settings have it. `keep_every` 0 keeps none for being an nth."""

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: bool | None = None

    def over(self, stored: CheckpointConfig) -> CheckpointConfig:
        """The run's settings with this over them. Raises ConfigError when they make no sense."""
        return replace(
            stored,
            keep_last=stored.keep_last if self.keep_last is None else self.keep_last,
            keep_every=stored.keep_every if self.keep_every is None else self.keep_every or None,
            keep_best=stored.keep_best if self.keep_best is None else self.keep_best,
            verify="full",
        )


def prune_run(config: Config, wanted: Wanted, dry_run: bool, single_writer_unsafe: bool = False) -> dict[str, Any]:
    """Remove the checkpoints that are not wanted; what went, what stays and what was read back first.

    Two of those that stay are read back before anybody is disturbed. Only then the run is taken over with a fence, and
    retention does the rest, with its own look at the two. With nothing to remove, or `dry_run`, nothing is written.
    `single_writer_unsafe` is a person's word that nobody else writes: a store without conditional writes will do.

    Raises:
        NotFoundError: There is no run.
        DataError: Fewer than two of those that would stay are whole; everything stays.
        AccessError: The store lets nobody delete here.
        FencedError: A job took the run over in the meantime; everything stays.
    """
    checkpoints = open_run(open_store(config.run_uri, config.storage, single_writer_unsafe=single_writer_unsafe))
    standing = history.checkpoints(checkpoints.records)
    settings = wanted.over(_stored_settings(standing))
    going = history.prunable(checkpoints.records, settings.keep_last, settings.keep_every, settings.keep_best)
    staying = [record for record in standing if record not in going]
    verified = _verify(checkpoints, staying) if going else []
    removed, objects = list(going), sum(len(record.objects) for record in going)
    if going and not dry_run:
        removed, objects = _remove(checkpoints, settings, single_writer_unsafe)
    return {
        "run_uri": config.run_uri,
        "dry_run": dry_run,
        "taken_over": checkpoints.term is not None,
        "keep": {name: getattr(settings, name) for name in ("keep_last", "keep_every", "keep_best")},
        "removed": [_row(record) for record in removed],
        "kept": [_row(record) for record in standing if record not in removed],
        "verified": [record.step for record in verified],
        "bytes": sum(record.size for record in removed),
        "objects": objects,
    }


def _stored_settings(standing: Sequence[Record]) -> CheckpointConfig:
    return stored_config(standing[-1].facts["config"]).checkpoint if standing else CheckpointConfig()


def _row(record: Record) -> dict[str, Any]:
    return {"seq": record.seq, "step": record.step, "val_loss": record.val_loss, "bytes": record.size}


def _verify(checkpoints: CheckpointStore, staying: Sequence[Record]) -> list[Record]:
    """The newest that are whole, enough of them to let others go. Raises DataError when they are too few."""
    found = read_back(checkpoints, staying, "full")
    for record, rejected in found.rejected:
        log.warning("checkpoint damaged, not counted on", step=record.step, reason=rejected.reason)
    if not found.enough:
        damage = "; ".join(f"step {record.step}: {rejected}" for record, rejected in found.rejected)
        can = f"{len(found.whole)} of those that would stay can be read back"
        raise DataError(f"nothing is removed: {can}, {damage or 'no other stands'}")
    return found.whole


def _remove(
    checkpoints: CheckpointStore, settings: CheckpointConfig, single_writer_unsafe: bool
) -> tuple[list[Record], int]:
    """Take the run over and let retention do its work; what went, and how many objects."""
    uri = checkpoints.objects.uri
    if not probe(checkpoints.objects, checkpoints.attempt, single_writer_unsafe):
        raise AccessError(f"{uri}: storage refuses deletions, so nothing can be removed with these credentials")
    log.warning("taking the run over: a job that trains on it ends with 73 at its next save", run_uri=uri)
    checkpoints.claim({"owner": owner_facts(), "code": code_facts(), "maintenance": True})
    outcome = Retention(checkpoints, settings).run()
    for seq, rejected in outcome.rejected.items():
        log.warning("checkpoint damaged, not counted on", seq=seq, reason=rejected.reason, detail=str(rejected))
    if outcome.rejected and not outcome.gone:
        raise DataError(f"{uri}: nothing was removed: what would have stayed was damaged in the meantime")
    return outcome.gone, outcome.objects
