"""What a log says, as pure functions over its records."""

from collections.abc import Sequence

from job.checkpoint.record import Record


def highest_term(records: Sequence[Record]) -> int:
    """Term of the attempt that owns the run; 0 when there was none."""
    return max((record.seq for record in records if record.kind == "fence"), default=0)


def unpruned(records: Sequence[Record]) -> list[Record]:
    """Checkpoints whose data is there, oldest first, those from before a reset among them."""
    pruned = {seq for record in records if record.kind == "prune" for seq in record.facts["pruned"]}
    return [record for record in records if record.kind == "checkpoint" and record.seq not in pruned]


def checkpoints(records: Sequence[Record]) -> list[Record]:
    """Checkpoints that may be continued from, oldest first: not pruned, and not from before a reset."""
    start = max((record.seq for record in records if record.kind == "fence" and record.facts["reset"]), default=0)
    return [record for record in unpruned(records) if record.seq > start]


def is_starting_point(record: Record) -> bool:
    """Whether nothing has been trained since the weights were imported: a checkpoint that no seed gives again."""
    return "imported" in record.facts and "numerics" not in record.facts


def was_reset(records: Sequence[Record]) -> bool:
    """Whether a person asked to start over and nothing has been saved since."""
    return any(record.kind == "fence" and record.facts["reset"] for record in records) and not checkpoints(records)


def completion(records: Sequence[Record]) -> Record | None:
    """The record of completion, unless something was saved or reset after it."""
    for record in reversed(records):
        if record.kind == "complete":
            return record
        if record.kind == "checkpoint" or (record.kind == "fence" and record.facts["reset"]):
            return None
    return None


def best(records: Sequence[Record]) -> Record | None:
    """The checkpoint with the lowest validation loss, the earliest of equals."""
    measured = [record for record in checkpoints(records) if record.val_loss is not None]
    return min(measured, key=lambda record: (record.val_loss, record.seq), default=None)


def lineage(records: Sequence[Record], last: Record) -> list[Record]:
    """Checkpoints that led to `last`, oldest first, pruned ones included."""
    by_seq = {record.seq: record for record in records if record.kind == "checkpoint"}
    line = [last]
    while (before := line[-1].facts["prev_checkpoint_seq"]) is not None and before in by_seq:
        line.append(by_seq[before])
    return line[::-1]


def prunable(records: Sequence[Record], keep_last: int, keep_every: int | None, keep_best: bool) -> list[Record]:
    """Checkpoints that retention no longer wants, oldest first.

    Those from before a reset are among them: nothing may continue from them any more, and the fence that says so
    cannot be taken back. Like all others they go only when enough of what stands has been verified.
    """
    standing = checkpoints(records)
    kept = {record.seq for record in standing[-max(2, keep_last) :]}
    if keep_every is not None:
        kept |= {record.seq for record in standing if record.step % keep_every == 0}
    if keep_best and (lowest := best(records)) is not None:
        kept.add(lowest.seq)
    kept |= {record.seq for record in standing if is_starting_point(record)}
    return [record for record in unpruned(records) if record.seq not in kept]
