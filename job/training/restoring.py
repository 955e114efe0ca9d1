"""Continuing from the newest checkpoint that is whole: rank 0 finds and reads it, and all ranks have it."""

from collections.abc import Sequence

from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.training.learner import Learner
from job.training.resume import Loaded, load_newest
from job.training.state import TrainingState, follow, restore


def restore_newest(
    checkpoints: CheckpointStore, candidates: Sequence[Record], learner: Learner
) -> Loaded[TrainingState]:
    """The state of the first of `candidates` that is valid, with the learner's tensors put in place on every rank.

    Raises:
        NotFoundError: None of them is valid; says why for each.
    """
    if checkpoints.ranks.leads:
        loaded = load_newest(checkpoints, candidates, lambda folder, record: restore(folder, record, learner))
        checkpoints.ranks.led(lambda: loaded.record.seq)
        return loaded
    state = follow(learner)
    seq = checkpoints.ranks.led(int)
    return Loaded(next(record for record in checkpoints.records if record.seq == seq), state)
