"""A GPT that remembers what it has read: a token costs one pass over the weights, whatever came before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.model.cache import KVCache
from job.model.gpt import GPT, Block
from job.model.projection import Projection, projection

Attend = Callable[[int, Tensor], Tensor]  # layer, qkv (N, 3HD) -> heads (N, HD)
Norm = Callable[[Tensor], Tensor]  # (N, C) float32 -> (N, C)


@dataclass(frozen=True, slots=True)
class _Layer:
    norm_1: Norm
    qkv: Projection
    merge: Projection
    norm_2: Norm
    up: Projection
    down: Projection


class Decoder:
    """A copy of a model's weights for decoding, in fp32 or bf16. The residual stream and the norms are fp32 in both.

    fp32 gives the model's own logits but for rounding; bf16 halves what a token has to read.

    An engine drives it with a `KVCache`: `open` a row, `read` a prompt into it, in pieces if it likes, `step` all rows,
    `close` those that are done.
    """

    def __init__(self, model: GPT, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.vocab_size, self.context_length = model.config, model.vocab_size, model.context_length
        self.dtype, self.device = dtype, model.wte.weight.device
        self._wte, self._wpe = model.wte.weight.detach(), model.wpe.weight.detach()
        self._layers = [_layer(cast(Block, block), dtype) for block in model.h]
        self._norm = _norm(model.ln_f, dtype)
        bias = getattr(model.lm_head, "bias", None)
        self._head = projection(model.lm_head.weight, bias, dtype)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache that fits. On a CPU it is fp32: bf16's products of one row are slower than reading twice."""
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        return KVCache(self.config, rows, dtype, self.device)

    @torch.inference_mode()
    def read(self, cache: KVCache, row: int, tokens: Sequence[int]) -> Tensor:
        """Append tokens (T,) to a row -> logits (V,) float32 of the token after the last."""
        return self.logits(self.hidden(cache, row, tokens)[-1:])[0]

    @torch.inference_mode()
    def hidden(self, cache: KVCache, row: int, tokens: Sequence[int]) -> Tensor:
        """Append tokens (T,) to a row -> what the head reads of each, (T, C)."""
        start, T = cache.lengths[row], len(tokens)
        end = start + T
        if T == 0 or end > cache.context_length:
            raise IndexError(f"{T} tokens after {start} do not fit a context of {cache.context_length}")
        H, D = self.config.n_head, self.config.head_width
        seen = torch.ones(T, end, dtype=torch.bool, device=self.device).tril(start) if start else None

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(T, 3, H, D).permute(1, 2, 0, 3)  # each (H, T, D)
            cache.write(layer, row, start, k, v)
            if seen is None:
                heads = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=1.0)
            else:
                held = cache.keys[layer][row : row + 1, :, :end], cache.values[layer][row : row + 1, :, :end]
                heads = F.scaled_dot_product_attention(q[None].to(cache.dtype), *held, attn_mask=seen, scale=1.0)
            return heads[0].transpose(0, 1).reshape(T, H * D).to(self.dtype)

        numbers = torch.tensor(tokens, device=self.device)
        x = self._run(F.embedding(numbers, self._wte) + self._wpe[start:end], attend)
        cache.lengths[row] = end
        return x

    @torch.inference_mode()
    def step(self, cache: KVCache, tokens: Sequence[int | None], whole: bool = False) -> Tensor:
        """Append one token to each row in use -> logits (n, V) float32 of the next one.

        A row whose token is None is left as it is, and one that is full keeps its length with its last token
        overwritten: the logits of both mean nothing.

        Args:
            whole: Always compute with every row there is room for and look at the whole context: slower, and a row's
                logits are the same, bit for bit, whatever the other rows hold and however many there are.
        """
        if len(tokens) != len(cache.lengths):
            raise IndexError(f"{len(tokens)} tokens for the {len(cache.lengths)} rows in use")
        unused = cache.rows - len(tokens) if whole else 0
        given, lengths = [*tokens, *[None] * unused], [*cache.lengths, *[0] * unused]
        n, H, D = len(given), self.config.n_head, self.config.head_width
        positions = [min(length, cache.context_length - 1) for length in lengths]
        counted = [position for token, position in zip(given, positions, strict=True) if token is not None]
        end = cache.context_length if whole else max(counted) + 1
        seen = None
        if whole or min(positions) + 1 < end:
            lasts = torch.tensor(positions, device=self.device)[:, None, None, None]
            seen = torch.arange(end, device=self.device) <= lasts  # (n, 1, 1, end)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(n, 3, H, D).unbind(1)  # each (n, H, D)
            cache.write_one(layer, positions, k, v)
            held = cache.keys[layer][:n, :, :end], cache.values[layer][:n, :, :end]
            heads = F.scaled_dot_product_attention(q[:, :, None].to(cache.dtype), *held, attn_mask=seen, scale=1.0)
            return heads.reshape(n, H * D).to(self.dtype)

        numbers, places = torch.tensor([[token or 0 for token in given], positions], device=self.device)
        x = self._run(F.embedding(numbers, self._wte) + F.embedding(places, self._wpe), attend)
        for row, token in enumerate(tokens):
            if token is not None:
                cache.lengths[row] = positions[row] + 1
        return self.logits(x)[: len(tokens)]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """What the head reads (N, C) -> logits (N, V) float32."""
        return self._head(hidden).float()

    def _run(self, x: Tensor, attend: Attend) -> Tensor:
        """The residual stream's start (N, C) float32 -> what the head reads (N, C)."""
        for number, layer in enumerate(self._layers):
            x = x + layer.merge(attend(number, layer.qkv(layer.norm_1(x))))
            x = x + layer.down(layer.up(layer.norm_2(x)))
        return self._norm(x)


def _layer(block: Block, dtype: torch.dtype) -> _Layer:
    attention, mlp = block.attn, block.mlp
    inner = attention.n_head * attention.head_size
    scale = torch.ones(3 * inner, device=attention.c_attn.weight.device)
    scale[:inner] = attention.scale  # into the queries' weights, so that no step multiplies by it
    bias = attention.c_attn.bias
    with torch.no_grad():
        qkv = projection(attention.c_attn.weight * scale[:, None], None if bias is None else bias * scale, dtype)
    return _Layer(
        _norm(block.ln_1, dtype),
        qkv,
        projection(attention.c_proj.weight, attention.c_proj.bias, dtype),
        _norm(block.ln_2, dtype),
        projection(mlp.c_fc.weight, mlp.c_fc.bias, dtype, activation=mlp.activation_name),
        projection(mlp.c_proj.weight, mlp.c_proj.bias, dtype),
    )


def _norm(module: nn.Module, dtype: torch.dtype) -> Norm:
    if not isinstance(module, nn.LayerNorm):
        return lambda x: x.to(dtype)
    shape, weight, eps = list(module.normalized_shape), module.weight.detach(), module.eps
    bias = module.bias.detach() if module.bias is not None else None
    return lambda x: F.layer_norm(x, shape, weight, bias, eps).to(dtype)
