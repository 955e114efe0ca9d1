"""How much memory a training step needs: counted where it can be, and measured on slices of the model elsewhere.

Activations are counted on models of one and of two blocks that read one sequence: what autograd keeps for the backward
pass grows by the same with each block and each sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from job.config import Config, ModelConfig
from job.infra.device import Numerics
from job.model.gpt import GPT, unfilled

_FLOAT = 4  # bytes; parameters, gradients and moments are fp32
_SLACK = 0.12  # of the rest: freed blocks that the C library keeps; 3 to 30 % were measured on seven shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that training takes on its device, and what else the host holds.

    Args:
        optimizer: Two moments of each parameter.
        activations: Of one forward pass, kept for its backward pass.
        logits: Of one pass: they, and what their gradients pass through (their logarithms count as kept).
        tied: The second gradient of an embedding that is the head too, until the two are added.
        snapshot: The copy that a checkpoint is written from, in host memory.
    """

    model: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    tied: int
    snapshot: int

    @property
    def step(self) -> int:
        """At most at a time in a training step, as the process's memory shows it."""
        state = self.model + self.gradients + self.optimizer
        return round((1 + _SLACK) * (state + self.tied + self.activations + self.logits))

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("model", "gradients", "optimizer", "activations", "logits", "tied", "snapshot")
        return {**{name: getattr(self, name) for name in names}, "step": self.step}


def estimate(config: Config, vocab_size: int, numerics: Numerics, device: torch.device) -> Memory:
    """What training with `config` takes on `device`, in one process of `numerics.world_size`."""
    parameters = unfilled(config.model, vocab_size, "meta").parameter_count
    rows = -(-config.training.batch_size // numerics.world_size)
    per_pass = min(rows, config.training.rows_per_pass)
    one, two = (_kept(config.model, layers, vocab_size, numerics, device) for layers in (1, 2))
    a_sequence = one + (config.model.n_layer - 1) * max(0, two - one)
    state = _FLOAT * parameters
    return Memory(
        model=state,
        gradients=state,
        optimizer=2 * state,
        activations=per_pass * a_sequence,
        logits=3 * _FLOAT * per_pass * config.model.context_length * vocab_size,
        tied=_FLOAT * vocab_size * config.model.n_embd if config.model.tie_weights else 0,
        snapshot=3 * state,
    )


def slice_of(config: ModelConfig, layers: int, vocab_size: int, device: torch.device) -> GPT:
    """A model of so many blocks, as wide as the whole one."""
    model = unfilled(replace(config, n_layer=layers), vocab_size, device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # fresh memory may hold anything, and slow denormals
    return model.train()


def _kept(config: ModelConfig, layers: int, vocab_size: int, numerics: Numerics, device: torch.device) -> int:
    """Bytes that autograd keeps of one sequence for the backward pass, parameters not counted."""
    model = slice_of(config, layers, vocab_size, device)
    tokens = torch.zeros(1, config.context_length, dtype=torch.int64, device=device)
    with counted(model) as kept, numerics.autocast():
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    return sum(kept.values())


@contextmanager
def counted(model: GPT) -> Iterator[dict[int, int]]:
    """Storages that autograd keeps inside the block, by address, and their bytes."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is given away twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
