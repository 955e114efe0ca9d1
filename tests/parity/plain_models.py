"""The tutorials' models written out plainly: the oracles that ours is held to.

Separate projections, an explicit mask, formulas instead of library kernels; sizes are arguments, never our settings.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + self.bias


def plain_attention(query: Tensor, key: Tensor, value: Tensor, divisor: float, dropout: float) -> Tensor:
    """(..., T, D) three times -> (..., T, D)."""
    scores = query @ key.mT / divisor
    future = torch.ones(scores.shape[-2:], device=scores.device).triu(1) == 1
    return F.dropout(scores.masked_fill(future, -math.inf).softmax(-1), dropout) @ value


class VerdictAttention(nn.Module):
    """Three square projections cut into heads; dropout on the attention weights; scale by the head's size."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.heads, self.size, self.dropout = heads, width // heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (project(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2) for project in self.qkv)
        seen = plain_attention(query, key, value, math.sqrt(self.size), self.dropout if self.training else 0.0)
        return self.out(seen.transpose(1, 2).flatten(2))


class BabyAttention(nn.Module):
    """Heads with projections of their own, one after the other; scale by the model's width."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(width, size, bias=False) for _ in range(3 * heads))  # all q, all k, all v
        self.out = nn.Linear(heads * size, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        trios = (self.qkv[head :: self.heads] for head in range(self.heads))
        seen = [plain_attention(*(project(x) for project in trio), math.sqrt(x.shape[-1]), 0.0) for trio in trios]
        return self.out(torch.cat(seen, dim=-1))


def plain_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_relu(x: Tensor) -> Tensor:
    return x * (x > 0)


class PlainBlock(nn.Module):
    def __init__(self, attention: nn.Module, width: int, activate: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.attention, self.activate = attention, activate
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm_1, self.norm_2 = PlainNorm(width), PlainNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm_1(x)))
        return x + self.drop(self.down(self.activate(self.up(self.norm_2(x)))))


class PlainVerdict(nn.Module):
    def __init__(
        self, layers: int, heads: int, width: int, context: int, vocab_size: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(
            *(PlainBlock(VerdictAttention(width, heads, dropout), width, plain_gelu, dropout) for _ in range(layers))
        )
        self.drop, self.norm = nn.Dropout(dropout), PlainNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(self.drop(x))))


class PlainBaby(nn.Module):
    def __init__(self, layers: int, heads: int, width: int, context: int, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        attentions = (BabyAttention(width, heads, width // heads) for _ in range(layers))
        self.blocks = nn.Sequential(*(PlainBlock(attention, width, plain_relu, 0.2) for attention in attentions))
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))))


def by_our_names(plain: nn.Module, read: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `read` gives of each plain parameter, under the name it has in ours."""
    parts = {"wte": [plain.tokens], "wpe": [plain.positions], "lm_head": [plain.head]}
    for i, block in enumerate(plain.blocks):
        parts |= {
            f"h.{i}.ln_1": [block.norm_1],
            f"h.{i}.attn.c_attn": list(block.attention.qkv),
            f"h.{i}.attn.c_proj": [block.attention.out],
            f"h.{i}.ln_2": [block.norm_2],
            f"h.{i}.mlp.c_fc": [block.up],
            f"h.{i}.mlp.c_proj": [block.down],
        }
    if hasattr(plain, "norm"):
        parts["ln_f"] = [plain.norm]
    return {
        f"{name}.{kind}": torch.cat([read(getattr(part, kind)) for part in modules])
        for name, modules in parts.items()
        for kind in ("weight", "bias")
        if getattr(modules[0], kind, None) is not None
    }
