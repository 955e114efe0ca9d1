"""What a run continues from: the numbers beside the tensors, and how all of it is put back."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from job.checkpoint.chain import GENESIS
from job.checkpoint.verify import Rejected
from job.data.order import DataOffset, passed_over
from job.training.learner import Learner
from job.training.tensors import load_model, load_optimizer

STATE, TOKENIZER = "state.json", "tokenizer.json"


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """What changes from step to step beside the tensors; all of it travels in `state.json`.

    Args:
        step: Updates made or skipped.
        seconds: Time spent in steps, over all attempts.
        chain: The chain of steps, in hex.
        data_offsets: What was passed over after steps that were not finite: each counts from its step on.
        nonfinite_in_a_row: Skipped steps since the last good one.
        nonfinite_steps: Skipped steps in all.
        eval_train_loss: Train loss of the last evaluation.
        val_loss: Validation loss of the last evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    chain: str = GENESIS
    data_offsets: list[DataOffset] = field(default_factory=list)
    nonfinite_in_a_row: int = 0
    nonfinite_steps: int = 0
    eval_train_loss: float | None = None
    val_loss: float | None = None

    @property
    def data_offset(self) -> int:
        """Samples passed over beyond those of the steps so far."""
        return passed_over(self.step, self.data_offsets)


def restore(folder: Path, learner: Learner) -> TrainingState:
    """Continue from the verified files in `folder`. Raises Rejected when they do not fit."""
    load_model(folder, learner.model)
    load_optimizer(folder, learner.model, learner.optimizer)
    try:
        rest = json.loads((folder / STATE).read_bytes())
        scaling = rest.pop("scaler")
        offsets = [DataOffset(**offset) for offset in rest.pop("data_offsets")]
        state = TrainingState(**rest, data_offsets=offsets)
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected("format", f"{STATE}: {error}") from error
    if scaling and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(scaling)
    return state
