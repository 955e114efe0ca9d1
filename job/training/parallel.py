"""How a model is spread over the ranks: whole in one process, whole in each (DDP), or in shards (FSDP2).

The learner and whatever stores or loads its tensors see them through one of these, and need not know which.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from job.config import Config
from job.errors import ConfigError
from job.infra.device import Numerics
from job.infra.ranks import ALONE, Ranks
from job.model.gpt import GPT


class Pass(NamedTuple):
    """One forward and backward pass of a rank within a step.

    Args:
        rows: Which of the rank's sequences.
        weight: What their mean loss counts in the gradients that the ranks average.
        last: Whether gradients are to be summed over the ranks after it.
    """

    rows: slice
    weight: float
    last: bool


class Parallel(Protocol):
    """A model as one of the ranks has it."""

    ranks: Ranks
    forward: Callable[[Tensor, Tensor], Tensor]  # tokens, targets (b, T) -> their mean loss

    def passes(self, rows: int, rows_per_pass: int) -> Iterator[Pass]:
        """How the rank's `rows` sequences of a step are cut; as many passes on every rank."""

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        """The block of a pass; only the last one of a step makes the ranks talk about gradients."""

    def total(self, loss: Tensor) -> Tensor:
        """The loss of the whole batch from the sums of weighted losses of each rank."""

    def number(self, norm: Tensor) -> Tensor:
        """A norm over all parameters as a plain tensor, the same on all ranks."""

    def place(self, target: Tensor, source: Tensor | None) -> None:
        """Copy what rank 0 has as `source` into a parameter, or into state like it."""

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        """Those of the tensors that this rank stores, whole and one at a time."""

    def whole(self, model: GPT) -> GPT:
        """The model with plain parameters: itself, or on rank 0 a copy in host memory."""


class Whole:
    """The one process that there is has everything."""

    def __init__(self, model: GPT) -> None:
        self.ranks: Ranks = ALONE
        self.forward: Callable[[Tensor, Tensor], Tensor] = model

    def passes(self, rows: int, rows_per_pass: int) -> Iterator[Pass]:
        for first in range(0, rows, rows_per_pass):
            count = min(rows_per_pass, rows - first)
            yield Pass(slice(first, first + count), count / rows, first + count == rows)

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def total(self, loss: Tensor) -> Tensor:
        return loss

    def number(self, norm: Tensor) -> Tensor:
        return norm

    def place(self, target: Tensor, source: Tensor | None) -> None:
        assert source is not None
        target.copy_(source)

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        return tensors.items()

    def whole(self, model: GPT) -> GPT:
        return model


class _Spread:
    """What both ways of several ranks have in common."""

    forward: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, ranks: Ranks, batch_size: int) -> None:
        self.ranks = ranks
        self._batch_size = batch_size

    def passes(self, rows: int, rows_per_pass: int) -> Iterator[Pass]:
        """A rank with fewer sequences than another makes up for a pass with one that counts nothing."""
        world_size = self.ranks.place.world_size
        most = math.ceil(self._batch_size / world_size)
        for first in range(0, most, rows_per_pass):
            count = max(0, min(first + rows_per_pass, rows) - first)
            part = slice(first, first + count) if count else slice(0, 1)
            yield Pass(part, count * world_size / self._batch_size, first + rows_per_pass >= most)

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        """The block of a pass."""
        raise NotImplementedError

    def total(self, loss: Tensor) -> Tensor:
        dist.all_reduce(loss)
        return loss / self.ranks.place.world_size

    def settle(self, model: GPT, tokens: Tensor, autocast: AbstractContextManager[object]) -> None:
        """Make one pass that changes nothing, after which all passes of this process are alike.

        DDP packs gradients anew after the first pass. With three ranks or more the packets decide how sums are
        rounded, and a run that is continued would begin with others than the run that was not stopped had. FSDP2
        takes its buffers in the first pass, which must not be an evaluation's, whose tensors cannot be trained with.
        """
        with self.syncing(last=True):
            with autocast:
                loss = self.forward(tokens, tokens)
            torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)

    def _mine(self, tensors: Mapping[str, Tensor]) -> set[str]:
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
        owner = owners(sizes, self.ranks.place.world_size)
        return {name for name in tensors if owner[name] == self.ranks.place.rank}


class Replicated(_Spread):
    """Each rank has the whole model and reads its rows of every batch; gradients are averaged (DDP)."""

    def __init__(self, model: GPT, ranks: Ranks, batch_size: int) -> None:
        super().__init__(ranks, batch_size)
        self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.forward = self._ddp

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._ddp.no_sync()

    def number(self, norm: Tensor) -> Tensor:
        return norm

    def place(self, target: Tensor, source: Tensor | None) -> None:
        if source is not None:
            target.copy_(source)
        dist.broadcast(target, 0)

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        mine = self._mine(tensors)
        return [(name, tensor) for name, tensor in tensors.items() if name in mine]

    def whole(self, model: GPT) -> GPT:
        return model


class Sharded(_Spread):
    """Each rank has a share of every parameter and its optimizer state, and gathers a block when it needs it."""

    def __init__(self, model: GPT, ranks: Ranks, batch_size: int, device: torch.device) -> None:
        super().__init__(ranks, batch_size)
        mesh = init_device_mesh(device.type, (ranks.place.world_size,))
        for block in model.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # else parameters are others after an evaluation
        register_fsdp_forward_method(model, "next_logits")
        self._model = cast(FSDPModule, model)
        self.forward = model

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        self._model.set_requires_gradient_sync(last)
        self._model.set_is_last_backward(last)
        return nullcontext()

    def number(self, norm: Tensor) -> Tensor:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def place(self, target: Tensor, source: Tensor | None) -> None:
        if not isinstance(target, DTensor):
            if source is not None:
                target.copy_(source)
            dist.broadcast(target, 0)
            return
        device = target.to_local().device
        room = torch.empty(target.shape, dtype=target.dtype, device=device) if source is None else source.to(device)
        target.copy_(distribute_tensor(room, target.device_mesh, target.placements))  # scattered by rank 0

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        mine = self._mine(tensors)
        for name, tensor in tensors.items():
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if name in mine:
                yield name, gathered

    def whole(self, model: GPT) -> GPT:
        copy = GPT(model.config, model.vocab_size) if self.ranks.leads else None
        room = dict(copy.named_parameters()) if copy else {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                if copy:
                    room[name].copy_(gathered)
        return copy or model


def spread_over(model: GPT, config: Config, numerics: Numerics, ranks: Ranks, device: torch.device) -> Parallel:
    """The model, spread as the numerics say. Its parameters may be others afterwards.

    Raises:
        ConfigError: There are more ranks than sequences in a batch.
    """
    world_size, batch_size = ranks.place.world_size, config.training.batch_size
    if world_size == 1:
        return Whole(model)
    if batch_size < world_size:
        raise ConfigError(
            f"training.batch_size={batch_size} is too small for {world_size} processes: one each at least"
        )
    sharded = numerics.parallel == "fsdp"
    found = Sharded(model, ranks, batch_size, device) if sharded else Replicated(model, ranks, batch_size)
    rows = min(config.training.rows_per_pass, math.ceil(batch_size / world_size))
    tokens = torch.zeros(rows, config.model.context_length, dtype=torch.int64, device=device)
    found.settle(model, tokens, numerics.autocast())
    return found


def owners(sizes: Mapping[str, int], world_size: int) -> dict[str, int]:
    """Which rank stores which tensor: the largest first, each by the rank that has least so far."""
    loads, found = [0] * world_size, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        found[name] = rank
    return found
