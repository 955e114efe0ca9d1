"""Dropout on a CPU without drawing a number for each element one by one.

torch draws a Bernoulli variable per element, which costs as much as half of the products of a step. Here sixteen random
bits decide about an element, drawn by the million from a generator that one draw of torch's own seeds: whoever seeds
torch repeats every mask. Probabilities are multiples of 1/65536, and what is kept is scaled by exactly that share.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_WORTH_IT = 1 << 13  # elements, below which torch's own is as fast
_LEVELS = 1 << 16
_ONES: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], int]] = {
    torch.float32: (np.uint32, 0x3F80_0000),  # the bits of 1.0
    torch.bfloat16: (np.uint16, 0x3F80),
    torch.float16: (np.uint16, 0x3C00),
}


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with a share `p` of its elements zeroed and the rest scaled up, when training."""
    if not training or p == 0:
        return x
    if x.numel() < _WORTH_IT or not can_draw(x):
        return F.dropout(x, p)
    dropped: Tensor = _Dropout.apply(x, Masks(draw_seed(), p))  # type: ignore[no-untyped-call]
    return dropped


def can_draw(x: Tensor) -> bool:
    """Whether masks for `x` are drawn here: on a CPU, outside the compiler."""
    return x.device.type == "cpu" and x.dtype in _ONES and not torch.compiler.is_compiling()


def draw_seed() -> int:
    """A seed drawn from torch's generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


class Masks:
    """Masks for one use of dropout, the same ones again from the same seed.

    Args:
        p: Share that is dropped.
    """

    def __init__(self, seed: int, p: float) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self._dropped = max(1, min(round(p * _LEVELS), _LEVELS - 1))
        self.scale = _LEVELS / (_LEVELS - self._dropped)  # makes up for what is dropped

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A mask of ones and zeros."""
        count = int(np.prod(shape))
        bits: NDArray[np.uint16] = self._generator.integers(0, 1 << 64, -(-count // 4), np.uint64).view(np.uint16)
        kind, one = _ONES[dtype]
        return torch.from_numpy(np.multiply(bits[:count] >= self._dropped, kind(one))).view(dtype).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, masks: Masks) -> Tensor:
        mask = masks.draw(tuple(x.shape), x.dtype)
        ctx.save_for_backward(mask)
        ctx.scale = masks.scale
        return (x * mask).mul_(masks.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None
