"""Going back after steps that were not finite, and passing over the data that did it.

Where a run goes back to is a function of the step alone, not of which checkpoints happen to stand: it is the last step
before the bad ones at which `checkpoint.every` asks for one. If that checkpoint was skipped, lost or pruned, an earlier
one is taken, or the seed, and the steps in between are made once more, to the bit. So a run that was stopped and one
that was not go back to the same place. A run that began with imported weights has no seed to go back to; retention
keeps the checkpoint that they are.
"""

from dataclasses import dataclass, replace

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.config import Config
from job.data.order import DataOffset
from job.errors import NotFoundError
from job.training.learner import Learner, begin_again
from job.training.restoring import restore_newest
from job.training.state import TrainingState


@dataclass(frozen=True, slots=True)
class Rollback:
    """Where a run went back to.

    Args:
        record: The checkpoint that was loaded; None for the seed.
        state: What training continues from.
        offset: The data that is passed over once training is back at its step.
    """

    record: Record | None
    state: TrainingState
    offset: DataOffset


def data_to_pass_over(first_bad: int, last_bad: int, every: int, batch_size: int) -> DataOffset:
    """From which step on, and how much: the data of all steps since the last regular checkpoint before the bad ones.

    Args:
        first_bad, last_bad: Steps whose updates were not made, counted from 1.
        every: Steps between checkpoints.
        batch_size: Samples of a step.
    """
    back_to = (first_bad - 1) // every * every
    return DataOffset(step=back_to, samples=(last_bad - back_to) * batch_size)


def roll_back(
    checkpoints: CheckpointStore, learner: Learner, state: TrainingState, offset: DataOffset, config: Config
) -> Rollback:
    """Put `learner` back to `offset.step` or before it; what was counted so far stays counted.

    Raises:
        NotFoundError: There are checkpoints to go back to, and none is valid; or the one with imported weights is gone.
    """
    line = history.lineage(checkpoints.records, checkpoints.last) if checkpoints.last else []
    standing = {record.seq for record in history.checkpoints(checkpoints.records)}
    candidates = [record for record in reversed(line) if record.seq in standing and record.step <= offset.step]
    record, before = None, TrainingState()
    if learner.parallel.ranks.led(lambda: bool(candidates)):
        loaded = restore_newest(checkpoints, candidates, learner)
        record, before = loaded.record, loaded.value
    elif checkpoints.last and (origin := checkpoints.last.facts.get("imported")):
        raise NotFoundError(
            f"{config.run_uri}: not finite, and no checkpoint of step {offset.step} or before is left to go back to; "
            f"the run began with {origin['uri']}, which no seed gives again: import it into another run"
        )
    else:
        begin_again(learner, config)
    after = replace(
        before,
        seconds=state.seconds,
        nonfinite_in_a_row=0,
        nonfinite_steps=state.nonfinite_steps,
        data_offsets=[*state.data_offsets, offset],
    )
    checkpoints.continue_from(record)
    return Rollback(record, after, offset)
