"""Causal attention for training on a CPU, a block of queries at a time against the keys that they may see.

With dropout torch leaves its fast kernel and holds every (B, H, T, T) matrix; without, its backward pass in bf16 is the
slower one. Nothing of size T x T is kept here: the backward pass computes the weights again, and draws the masks again
from their seed (Dao et al. 2022, section 3.1).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from job.model.dropout import Masks, can_draw, draw_seed

_ROWS = 128  # queries of a block
_WORTH_IT = 1 << 18  # attention weights, below which torch's own is as fast


def attend(q: Tensor, k: Tensor, v: Tensor, p: float, scale: float) -> Tensor:
    """Queries, keys, values (B, H, T, D) -> (B, H, T, D); position t sees positions 0..t, each dropped with share p."""
    B, H, T, _ = q.shape
    blocked = can_draw(q) and torch.is_grad_enabled() and B * H * T * T >= _WORTH_IT
    if not blocked or (p == 0 and q.dtype == torch.float32):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True, scale=scale)
    flat = (x.reshape(B * H, T, -1) for x in (q * scale, k, v))
    heads: Tensor = _Attention.apply(*flat, p, draw_seed() if p else 0)  # type: ignore[no-untyped-call]
    return heads.view(q.shape)


class _Attention(torch.autograd.Function):
    """Scaled queries, keys, values (N, T, D), N heads -> (N, T, D), all of it in their dtype, sums in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float, seed: int) -> Tensor:
        masks = Masks(seed, p) if p else None
        out = torch.empty_like(q)
        for rows, seen, weights, mask in _blocks(q, k, masks):
            out[:, rows] = torch.bmm(weights if mask is None else weights.mul_(mask), v[:, seen])
        if masks:
            out.mul_(masks.scale)
        ctx.save_for_backward(q, k, v, out)
        ctx.p, ctx.seed = p, seed
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        masks = Masks(ctx.seed, ctx.p) if ctx.p else None
        mean = (gradient * out).sum(-1, keepdim=True)  # (N, T, 1): of the weights' gradients, under the weights
        gradient = gradient.contiguous() if masks is None else gradient * masks.scale
        for_q = torch.empty_like(q)
        for_k, for_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for rows, seen, weights, mask in _blocks(q, k, masks):
            for_weights = torch.bmm(gradient[:, rows], v[:, seen].mT)
            kept = weights
            if mask is not None:
                kept = weights * mask
                for_weights.mul_(mask)
            for_v[:, seen] += torch.bmm(kept.mT, gradient[:, rows])
            for_scores = for_weights.sub_(mean[:, rows]).mul_(weights)
            for_q[:, rows] = torch.bmm(for_scores, k[:, seen])
            for_k[:, seen] += torch.bmm(for_scores.mT, q[:, rows])
        return for_q, for_k.to(k.dtype), for_v.to(v.dtype), None, None


def _blocks(q: Tensor, k: Tensor, masks: Masks | None) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """For each block its rows, the keys that they see, and weights and mask (N, rows, keys)."""
    N, T, _ = q.shape
    future = torch.full((_ROWS, _ROWS), -torch.inf, dtype=q.dtype).triu(1)
    for first in range(0, T, _ROWS):
        rows, seen = slice(first, min(first + _ROWS, T)), slice(0, min(first + _ROWS, T))
        count = rows.stop - first
        scores = torch.bmm(q[:, rows], k[:, seen].mT)
        scores[:, :, rows] += future[:count, :count]
        yield rows, seen, scores.softmax(-1), masks.draw((N, count, seen.stop), q.dtype) if masks else None
