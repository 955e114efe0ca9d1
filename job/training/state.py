"""What a run continues from: the numbers beside the tensors, and how all of it is put back."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.checkpoint.chain import GENESIS
from job.checkpoint.files import MODEL, OPTIMIZER, STATE
from job.checkpoint.record import Record, canonical
from job.checkpoint.verify import Rejected
from job.data.order import DataOffset, passed_over
from job.training.handout import Found, hand_out
from job.training.learner import Learner
from job.training.tensors import StoredTensors, require_model, require_optimizer


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


def restore(folder: Path, record: Record, learner: Learner) -> TrainingState:
    """Continue from the verified files of `record` in `folder`, all ranks; the others call `follow`.

    Raises:
        Rejected: They do not fit; nothing has been changed.
    """
    model, optimizer = StoredTensors(folder, MODEL), StoredTensors(folder, OPTIMIZER)
    require_model(model, learner.model)
    require_optimizer(optimizer, learner.model)
    content = (folder / STATE).read_bytes()
    state, _ = _read_state(content)
    said = {name: record.facts.get(name) for name in ("step", "chain", "data_offset")}
    if (found := {name: getattr(state, name) for name in said}) != said:
        raise Rejected("format", f"{STATE} says {found}, the record {said}")
    return _continue(learner, Found(model, optimizer, content.decode()))


def follow(learner: Learner) -> TrainingState:
    """What `restore` gives on rank 0, where that is called."""
    return _continue(learner, None)


def _continue(learner: Learner, found: Found | None) -> TrainingState:
    state, scaling = _read_state(hand_out(learner, found).encode())
    if scaling and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(scaling)
    return state


def _read_state(content: bytes) -> tuple[TrainingState, dict[str, Any] | None]:
    """The state, and that of the scaler where there was one. Raises Rejected when no run can have written it."""
    try:
        rest = json.loads(content)
        whole = canonical(rest) == content
        scaling = rest.pop("scaler")
        offsets = [DataOffset(**offset) for offset in rest.pop("data_offsets")]
        state = TrainingState(**rest, data_offsets=offsets)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Rejected("format", f"{STATE}: {error!r}") from error
    if not (whole and _is_possible(state) and (scaling is None or isinstance(scaling, dict))):
        raise Rejected("format", f"{STATE} is nothing that a run can have saved")
    return state, scaling


def _is_possible(state: TrainingState) -> bool:
    """Whether every field is of its kind: a file can say anything."""
    counts = [state.step, state.nonfinite_in_a_row, state.nonfinite_steps]
    counts += [count for offset in state.data_offsets for count in (offset.step, offset.samples)]
    losses = (state.eval_train_loss, state.val_loss)
    return (
        all(type(count) is int and 0 <= count < 1 << 63 for count in counts)
        and all(loss is None or type(loss) in (int, float) for loss in losses)
        and type(state.seconds) in (int, float)
        and state.seconds >= 0
        and re.fullmatch("[0-9a-f]{64}", str(state.chain)) is not None
    )
