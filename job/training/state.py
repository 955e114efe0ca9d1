"""What a run continues from: the numbers beside the tensors, taken into a checkpoint and put back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from job.checkpoint.chain import GENESIS
from job.checkpoint.record import canonical
from job.checkpoint.store import Checkpoint
from job.checkpoint.verify import Rejected
from job.errors import DivergedError
from job.training.learner import Learner
from job.training.tensors import (
    MODEL,
    OPTIMIZER,
    load_model,
    load_optimizer,
    model_tensors,
    not_finite,
    optimizer_tensors,
    snapshot,
    to_safetensors,
)

STATE, TOKENIZER = "state.json", "tokenizer.json"


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """What changes from step to step beside the tensors; all of it travels in `state.json`.

    Args:
        step: Updates made or skipped.
        seconds: Time spent in steps, over all attempts.
        chain: The chain of steps, in hex.
        data_offset: Samples passed over beyond those of the steps.
        nonfinite_in_a_row: Skipped steps since the last good one.
        nonfinite_steps: Skipped steps in all.
        train_loss: Loss of the last good step, nats per token.
        eval_train_loss: Train loss of the last evaluation.
        val_loss: Validation loss of the last evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    chain: str = GENESIS
    data_offset: int = 0
    nonfinite_in_a_row: int = 0
    nonfinite_steps: int = 0
    train_loss: float | None = None
    eval_train_loss: float | None = None
    val_loss: float | None = None


def take_checkpoint(
    state: TrainingState,
    learner: Learner,
    *,
    tokenizer_json: bytes,
    events: bytes,
    facts: Mapping[str, object],
) -> Checkpoint:
    """A frozen checkpoint of the present step.

    Raises:
        DivergedError: A tensor is not finite; such a state is never saved.
    """
    model_copy = snapshot(model_tensors(learner.model))
    optimizer_copy = snapshot(optimizer_tensors(learner.model, learner.optimizer))
    if bad := not_finite(model_copy) + not_finite(optimizer_copy):
        raise DivergedError(f"step {state.step}: {', '.join(bad[:5])} not finite; this state is not saved")
    rest = {**asdict(state), "scaler": learner.scaler.state_dict() if learner.scaler.is_enabled() else None}
    return Checkpoint(
        step=state.step,
        files={
            MODEL: to_safetensors(model_copy),
            OPTIMIZER: to_safetensors(optimizer_copy),
            STATE: [canonical(rest)],
            TOKENIZER: [tokenizer_json],
        },
        events=events,
        facts={**facts, "chain": state.chain, "data_offset": state.data_offset},
    )


def restore(folder: Path, learner: Learner) -> TrainingState:
    """Continue from the verified files in `folder`. Raises Rejected when they do not fit."""
    load_model(folder, learner.model)
    load_optimizer(folder, learner.model, learner.optimizer)
    try:
        rest = json.loads((folder / STATE).read_bytes())
        scaling = rest.pop("scaler")
        state = TrainingState(**rest)
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected("format", f"{STATE}: {error}") from error
    if scaling and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(scaling)
    return state
