"""A frozen copy of a run's state in host memory, and the checkpoint that it becomes.

The copy is all that training waits for; what is made of it, is made elsewhere and later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from job.checkpoint.events import Segment
from job.checkpoint.files import MODEL, OPTIMIZER, STATE, TOKENIZER
from job.checkpoint.record import canonical
from job.checkpoint.store import Checkpoint
from job.errors import DivergedError
from job.infra.object_store import Content
from job.infra.place import ALONE, Place
from job.training.learner import Learner
from job.training.state import TrainingState
from job.training.tensors import model_tensors, not_finite, optimizer_tensors, part_name, to_safetensors


class HostMemory:
    """Memory of the host into which snapshots are copied: taken once, used again by the next.

    Args:
        pinned: Page-locked, so that a GPU copies to it at full speed.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._kept: dict[str, Tensor] = {}

    def copy(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """A copy that the next call with the same names overwrites."""
        pinned = self._pinned
        copies = {name: self._room(name, tensor).copy_(tensor, non_blocking=pinned) for name, tensor in tensors}
        if pinned:
            torch.cuda.synchronize()
        return copies

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
        return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything that a resume from `step` needs, copied; nothing of it changes while it is stored.

    Of several ranks each has the tensors that it stores, and the first alone the rest.
    """

    step: int
    place: Place = ALONE
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: bytes
    tokenizer: bytes
    events: Segment
    facts: Mapping[str, Any]

    def checkpoint(self) -> Checkpoint:
        """What is stored of it.

        Raises:
            DivergedError: A tensor is not finite; such a state is never saved.
        """
        if bad := not_finite(self.model) + not_finite(self.optimizer):
            raise DivergedError(f"step {self.step}: {', '.join(bad[:5])} not finite; this state is not saved")
        rank, world_size = self.place.rank, self.place.world_size
        files: dict[str, Content] = {
            part_name(MODEL, rank, world_size): to_safetensors(self.model),
            part_name(OPTIMIZER, rank, world_size): to_safetensors(self.optimizer),
        }
        if rank == 0:
            files |= {STATE: [self.state], TOKENIZER: [self.tokenizer]}
        return Checkpoint(
            step=self.step,
            files=files,
            events=self.events.content if rank == 0 else None,
            facts=self.facts,
        )


def take_snapshot(
    memory: HostMemory,
    state: TrainingState,
    learner: Learner,
    *,
    tokenizer: bytes,
    events: Segment,
    facts: Mapping[str, Any],
) -> Snapshot:
    """A snapshot of the present step in `memory`, good until the next one is taken there.

    Raises:
        MemoryError: The host has no room for a copy of the state.
    """
    scaler = learner.scaler.state_dict() if learner.scaler.is_enabled() else None
    model, optimizer = model_tensors(learner.model), optimizer_tensors(learner.model, learner.optimizer)
    try:
        tensors = {**model, **optimizer}  # an optimizer's names are a parameter's and more
        copies = memory.copy(learner.parallel.owned(tensors))
    except RuntimeError as error:  # what torch raises when malloc fails, or pinning
        raise MemoryError(f"no room for a copy of the state: {error}") from error
    return Snapshot(
        step=state.step,
        place=learner.parallel.ranks.place,
        model={name: copies[name] for name in model if name in copies},
        optimizer={name: copies[name] for name in optimizer if name in copies},
        state=canonical({**asdict(state), "scaler": scaler}),
        tokenizer=tokenizer,
        events=events,
        facts={**facts, "chain": state.chain, "data_offset": state.data_offset},
    )
