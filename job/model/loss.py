"""The loss of the head's logits, which are never held in fp32 whole, nor twice.

Logits are computed for some rows at a time in the dtype of the products, and turned in place into their own gradient
while they are at hand; a backward pass then only scales. The vocabulary is padded inside to a multiple of 64, on which
products are faster; padded logits are left out of every sum, so that the loss is exact.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_WORTH_IT = 16 << 20  # bytes of logits in fp32, below which torch's own is as fast
LOGIT_BYTES = 256 << 20  # of the rows that are taken together
_CHUNK_BYTES = 4 << 20  # of the part in fp32, on a CPU: what its cache holds
_PAD = 64


def head_loss(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, compiled: bool = False) -> Tensor:
    """What the head reads (..., C), weight (V, C), bias (V), targets (...) -> mean cross-entropy, nats per token."""
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    if 4 * len(x) * len(weight) < _WORTH_IT or not torch.is_grad_enabled():
        return F.cross_entropy(F.linear(x, weight, bias), targets)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if dtype == torch.float16:  # its gradients have to be scaled before they are rounded
        return F.cross_entropy(F.linear(x, weight, bias), targets)
    loss: Tensor = _HeadLoss.apply(x, weight, bias, targets, dtype, compiled)  # type: ignore[no-untyped-call]
    return loss


def head_bytes(rows: int, vocab_size: int, channels: int, width: int) -> int:
    """What `head_loss` takes at most beside weight and gradients, with logits of `width` bytes a number."""
    if 4 * rows * vocab_size < _WORTH_IT:
        return 3 * 4 * rows * vocab_size  # logits, their logarithms, their gradient
    weight = (width + 4) * vocab_size * channels  # cast, and its gradient before it is handed over
    return weight + min(LOGIT_BYTES, width * rows * vocab_size) + 2 * width * rows * channels + 4 * _CHUNK_BYTES


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        compiled: bool,
    ) -> Tensor:
        to_gradient = _compiled() if compiled else _to_gradient
        V, C = weight.shape
        padded = -(-V // _PAD) * _PAD
        w = torch.zeros(padded, C, dtype=dtype, device=x.device)
        w[:V].copy_(weight)
        given = x.to(dtype)
        for_x = torch.empty_like(given)
        for_weight: Tensor | None = None
        for_bias = None if bias is None else torch.zeros_like(bias)
        total = torch.zeros((), device=x.device)
        rows = math.ceil(len(given) / math.ceil(len(given) * padded * given.element_size() / LOGIT_BYTES))
        for first in range(0, len(given), rows):
            part = slice(first, first + rows)
            logits = given[part] @ w.T  # becomes its own gradient; 0 where it is padded, and stays so
            total += to_gradient(logits[:, :V], bias, targets[part], 1 / len(given))
            torch.mm(logits, w, out=for_x[part])
            share = (logits.T @ given[part])[:V]
            for_weight = share.to(weight.dtype) if for_weight is None else for_weight.add_(share)
            if for_bias is not None:
                for_bias += logits[:, :V].sum(0, dtype=torch.float32)
        ctx.save_for_backward(for_x, for_weight, for_bias)
        ctx.dtype = x.dtype
        return total / len(given)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_x, for_weight, for_bias = ctx.saved_tensors
        if gradient.device.type != "cpu" or gradient != 1:  # nothing to do without accumulation, and much of it
            for_weight.mul_(gradient)
        return (
            for_x.to(ctx.dtype) * gradient,
            for_weight,
            None if for_bias is None else for_bias * gradient,
            None,
            None,
            None,
        )


def _to_gradient(logits: Tensor, bias: Tensor | None, targets: Tensor, share: float) -> Tensor:
    """Turn logits (n, V) into the gradient of `share` times the sum of their losses; returns that sum."""
    V = logits.shape[1]
    total = torch.zeros((), device=logits.device)
    rows = len(logits)  # compiled, nothing of it is ever whole in fp32
    if not torch.compiler.is_compiling():
        rows = max(1, (_CHUNK_BYTES if logits.device.type == "cpu" else LOGIT_BYTES) // (4 * V))
    for first in range(0, len(logits), rows):
        part = logits[first : first + rows]
        wanted = targets[first : first + rows, None]
        scores = part.float() if bias is None else part.float() + bias
        shares = scores.softmax(-1)
        normalizer = scores.amax(-1) - shares.amax(-1).log()
        total += (normalizer - scores.gather(1, wanted)[:, 0]).sum()
        shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
        part.copy_(shares.mul_(share))
    return total


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_to_gradient, dynamic=False)  # a size seen before must not decide about the next one
