"""A model over several ranks: whole in each of them (DDP), or in shards (FSDP2)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from job.config import Config
from job.infra.device import Numerics
from job.infra.ranks import Ranks
from job.model.gpt import GPT
from job.training.parallel import Pass, require_sequences


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
        self.forward = model

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext()  # gradients that are not summed and shared out after each pass stay whole on every rank

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


def spread(model: GPT, config: Config, numerics: Numerics, ranks: Ranks, device: torch.device) -> Replicated | Sharded:
    """The model over two ranks or more, as the numerics say. Its parameters may be others afterwards.

    Raises:
        ConfigError: There are more ranks than sequences in a batch.
    """
    world_size, batch_size = ranks.place.world_size, config.training.batch_size
    require_sequences(config, world_size)
    sharded = numerics.parallel == "fsdp"
    found = Sharded(model, ranks, batch_size, device) if sharded else Replicated(model, ranks, batch_size)
    _, rows = config.training.rows_of_a_rank(world_size)
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
