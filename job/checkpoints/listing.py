"""The `checkpoints list` command: what a run can be continued from."""

from typing import Any

from job.checkpoint import history
from job.checkpoint.choice import open_run
from job.checkpoint.record import Record
from job.checkpoint.verify import Rejected, check_sizes
from job.config import Config
from job.infra.object_store import ObjectStore
from job.infra.storage import open_store


def list_checkpoints(config: Config) -> list[dict[str, Any]]:
    """A row for each checkpoint that can be continued from, oldest first.

    `valid` compares the size of each object with the record; `pinned` says that retention keeps it for more than
    being recent.

    Raises:
        NotFoundError: There is no run at `config.run_uri`.
    """
    store = open_run(open_store(config.run_uri, config.storage))
    best = history.best(store.records)
    return [_row(store.objects, record, best) for record in history.checkpoints(store.records)]


def _row(objects: ObjectStore, record: Record, best: Record | None) -> dict[str, Any]:
    kept_every = record.facts["config"]["checkpoint"]["keep_every"]
    is_nth = kept_every is not None and record.step % kept_every == 0
    return {
        "seq": record.seq,
        "step": record.step,
        "chain": record.chain,
        "val_loss": record.val_loss,
        "bytes": record.size,
        "objects": len(record.objects),
        "pinned": record is best or is_nth or history.is_starting_point(record),
        "valid": _is_whole(objects, record),
    }


def _is_whole(objects: ObjectStore, record: Record) -> bool:
    try:
        check_sizes(objects, record)
    except Rejected:
        return False
    return True
