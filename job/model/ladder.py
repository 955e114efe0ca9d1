"""Baby GPT's road: each rung is the GPT of a config with the parts taken off that come only later on the road."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from job.config import ModelConfig
from job.model.gpt import GPT, Block


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A step of the road: everything of the rungs before it, and one thing more.

    Args:
        new: What it adds.
        purpose: What that is for.
    """

    name: str
    new: str
    purpose: str

    def has(self, name: str) -> bool:
        """Whether what the rung of this name adds is part of this one."""
        return NAMES.index(self.name) >= NAMES.index(name)


RUNGS = (
    Rung(
        name="bigram",
        new="a table of pairs",
        purpose="Each token alone predicts the next: what pairs tell, and the loss that everything else has to beat.",
    ),
    Rung(
        name="positions",
        new="learned positions",
        purpose="Where a token stands is added to what it is. Alone it helps little; attention will need it.",
    ),
    Rung(
        name="one head",
        new="attention by dot-product",
        purpose="Each position looks back, most at those whose keys agree with its query: the first use of a context.",
    ),
    Rung(
        name="scaled",
        new="scaled dot-product",
        purpose="Products shrink by the root of their length, so that softmax stays open to more than one position.",
    ),
    Rung(
        name="several heads",
        new="heads, joined by a projection",
        purpose="Several looks at once, each narrower and each at something else.",
    ),
    Rung(
        name="feed-forward",
        new="two projections and a ReLU",
        purpose="Each position works on what it has gathered, by itself.",
    ),
    Rung(
        name="stacked",
        new="blocks on top of each other",
        purpose="A second look at what the first has found. Without residuals each block is in the gradient's way.",
    ),
    Rung(
        name="residuals",
        new="each part adds to a stream",
        purpose="Nothing has to pass through a block: gradients reach the first one undiminished.",
    ),
    Rung(
        name="layer norm",
        new="each part reads at one scale",
        purpose="However much has been added to the stream, each part sees it in the same range: training is steadier.",
    ),
    Rung(
        name="dropout",
        new="random parts left out",
        purpose="Against learning by heart. A model too small for that loses by it: expect a higher loss here.",
    ),
    Rung(
        name="scaled up",
        new="more of everything",
        purpose="The same model with more layers, heads, width and context: what the road was for.",
    ),
)
NAMES = tuple(rung.name for rung in RUNGS)


def build_rung(rung: Rung, config: ModelConfig, vocab_size: int) -> GPT:
    """The model of `rung`, freshly initialized; from the rung with dropout on it is the GPT of `config`."""
    model = GPT(rung_shape(rung, config), vocab_size)
    if not rung.has("positions"):
        model.wpe = NoPositions(config)  # type: ignore[assignment]  # asked for its weight only
    if not rung.has("one head"):
        model.h = nn.ModuleList()
    for number, block in enumerate(model.h):
        assert isinstance(block, Block)
        model.h[number] = _stripped(block, rung)
    return model


def rung_shape(rung: Rung, config: ModelConfig) -> ModelConfig:
    """The shape of `rung`'s model.

    Heads are half as wide before blocks are stacked: Baby GPT's table has 4 channels where its Block takes 8.
    """
    shape = replace(config, final_norm=config.final_norm and rung.has("layer norm"))
    if not rung.has("dropout"):
        shape = replace(shape, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    if rung.has("stacked"):
        return shape
    if rung.has("several heads"):
        return replace(shape, n_layer=1, head_size=max(1, config.head_width // 2))
    return replace(shape, n_layer=1, n_head=1, head_size=config.n_embd)


class NoPositions(nn.Module):
    """Stands where positions would be and adds nothing."""

    weight: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, config.n_embd), persistent=False)


class Chained(nn.Module):
    """A block without a stream: the feed-forward, if there is one, reads what attention gives, and nothing else."""

    def __init__(self, block: Block, feed_forward: bool) -> None:
        super().__init__()
        self.attn = block.attn
        self.mlp = block.mlp if feed_forward else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        y: Tensor = self.mlp(self.attn(x))
        return y


def _stripped(block: Block, rung: Rung) -> nn.Module:
    """`block` without what comes later on the road."""
    if not rung.has("scaled"):
        block.attn.scale = 1.0
    if not rung.has("several heads"):
        block.attn.register_module("c_proj", nn.Identity())
    if not rung.has("layer norm"):
        block.register_module("ln_1", nn.Identity())
        block.register_module("ln_2", nn.Identity())
    return block if rung.has("residuals") else Chained(block, rung.has("feed-forward"))
