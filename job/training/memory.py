"""How much memory a training step needs.

What autograd keeps for the backward pass is counted on models of one and of two blocks that read one and two sequences:
it grows by the same with each block and each sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from job.config import Config, ModelConfig
from job.infra.device import Numerics
from job.model.gpt import GPT, unfilled
from job.model.loss import head_bytes

_FLOAT = 4  # bytes; parameters, gradients and moments are fp32
_SLACK = 0.3  # of what comes and goes: taken for a moment, or kept by the C library; 4 to 54 % on eight shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that training takes on its device, and what else the host holds.

    Args:
        optimizer: Moments of each parameter: two of AdamW's, one of Muon's.
        head: What the loss takes beside its own gradient.
        tied: The second gradient of an embedding that is the head too, until the two are added.
        buckets: DDP's room for all gradients, from which they travel; those of a pass come beside it.
        whole: What FSDP has whole of a model in shards during a pass: all that is in no block, and its gradients.
        whole_blocks: Of two blocks the parameters, and of one the gradients and the copy of them that travels.
        casts: Of parameters, in the precision of the products, kept for the backward pass.
        a_sequence: Activations of one sequence, kept for its backward pass.
        sequences: How many pass at once.
        passes: Of a step; from the second on there are gradients beside the activations.
        snapshot: The copy that a checkpoint is written from, in host memory.
    """

    model: int
    gradients: int
    optimizer: int
    head: int
    tied: int
    buckets: int
    whole: int
    whole_blocks: int
    casts: int
    a_sequence: int
    sequences: int
    passes: int
    snapshot: int

    @property
    def activations(self) -> int:
        """Of all sequences that pass at once."""
        return self.a_sequence * self.sequences

    @property
    def step(self) -> int:
        """At most at a time in a training step, as the process's memory shows it."""
        return self.with_sequences(self.sequences)

    @property
    def tensors(self) -> int:
        """The same of tensors alone, were all memory given back that is freed."""
        return self.with_sequences(self.sequences, slack=0.0)

    def with_sequences(self, count: int, slack: float = _SLACK) -> int:
        """`step`, if so many sequences passed at once."""
        gradients = self.gradients + self.tied
        forward = max(self.head, self.whole_blocks) + self.casts + count * self.a_sequence
        if self.passes > 1 or count < self.sequences:
            forward += gradients
        stays = self.model + self.optimizer + self.buckets
        return round(stays + (1 + slack) * (self.whole + max(gradients, forward)))

    def sequences_within(self, total: int) -> int:
        """The most sequences at once, a power of two, whose step fits `total` bytes; 0 when none does."""
        powers = (1 << bit for bit in reversed(range(self.sequences.bit_length())))
        return next((count for count in powers if self.with_sequences(count) <= total), 0)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("model", "gradients", "optimizer", "head", "tied", "buckets", "whole", "whole_blocks", "casts")
        return {name: getattr(self, name) for name in (*names, "activations", "snapshot", "step")}


def estimate(config: Config, vocab_size: int, numerics: Numerics, device: torch.device) -> Memory:
    """What training with `config` takes in one process of `numerics.world_size`, counted on `device`."""
    whole = unfilled(config.model, vocab_size, "meta")
    rows, per_pass = config.training.rows_of_a_rank(numerics.world_size)
    one, two = (
        [_kept(config.model, layers, sequences, vocab_size, numerics, device) for sequences in (1, 2)]
        for layers in (1, 2)
    )
    of_one, of_two = one[1] - one[0], two[1] - two[0]  # what a sequence adds
    fixed_of_one, fixed_of_two = one[0] - of_one, two[0] - of_two
    more = config.model.n_layer - 1
    state = _FLOAT * whole.parameter_count
    matrices = sum(p.numel() for p in whole.h.parameters() if p.dim() == 2) if config.optimizer.name == "muon" else 0
    optimizer = 2 * state - _FLOAT * matrices
    tokens = per_pass * config.model.context_length
    width = 4 if numerics.precision == "fp32" else 2
    several, sharded = numerics.world_size > 1, numerics.parallel == "fsdp"
    shares = numerics.world_size if sharded else 1
    a_block = _FLOAT * sum(parameter.numel() for parameter in whole.h[0].parameters())
    rest = state - config.model.n_layer * a_block
    return Memory(
        model=state // shares,
        gradients=state // shares,
        optimizer=optimizer // shares,
        head=head_bytes(tokens, vocab_size, config.model.n_embd, width),
        tied=_FLOAT * vocab_size * config.model.n_embd if config.model.tie_weights and not sharded else 0,
        buckets=state if several and not sharded else 0,
        whole=2 * rest if sharded else 0,
        whole_blocks=4 * a_block if sharded else 0,
        casts=max(0, fixed_of_one + more * (fixed_of_two - fixed_of_one)),
        a_sequence=of_one + more * (of_two - of_one),
        sequences=per_pass,
        passes=-(-rows // per_pass),
        snapshot=state + optimizer,
    )


def slice_of(config: ModelConfig, layers: int, vocab_size: int, device: torch.device) -> GPT:
    """A model of so many blocks, as wide as the whole one."""
    model = unfilled(replace(config, n_layer=layers), vocab_size, device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # fresh memory may hold anything, and slow denormals
    return model.train()


def _kept(
    config: ModelConfig, layers: int, sequences: int, vocab_size: int, numerics: Numerics, device: torch.device
) -> int:
    """Bytes that autograd keeps below the head for the backward pass, parameters not counted."""
    model = slice_of(config, layers, vocab_size, device)
    tokens = torch.zeros(sequences, config.context_length, dtype=torch.int64, device=device)
    with _counted(model) as kept, numerics.autocast():
        model.hidden(tokens)
    return sum(kept.values())


@contextmanager
def _counted(model: GPT) -> Iterator[dict[int, int]]:
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
