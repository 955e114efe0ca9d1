"""The GPT: tokens -> logits, with GPT-2's parameter names (Radford et al. 2019).

Shape letters, here and everywhere: B batch, T tokens, C channels (n_embd), H heads, D head size, V vocabulary.
Starting values are drawn in the order of construction: wte, wpe, each block's attention, its feed-forward, lm_head.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from job.config import ModelConfig
from job.errors import ConfigError
from job.model.attention import attend
from job.model.dropout import dropout
from job.model.loss import head_loss

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class Attention(nn.Module):
    """Causal self-attention of H heads of size D, which need not add up to C."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.head_size = config.n_head, config.head_width
        inner = self.n_head * self.head_size
        self.c_attn = nn.Linear(config.n_embd, 3 * inner, bias=config.qkv_bias)  # rows: all of q, all of k, all of v
        self.c_proj = nn.Linear(inner, config.n_embd, bias=config.bias)
        self.dropout = config.dropout_of("attention")
        self.scale = 1 / math.sqrt(self.head_size if config.attention_scale == "head" else config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); position t sees positions 0..t."""
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # each (B, H, T, D)
        heads = attend(q, k, v, self.dropout if self.training else 0.0, self.scale)
        y: Tensor = self.c_proj(heads.transpose(1, 2).reshape(B, T, self.n_head * self.head_size))
        return y


class FeedForward(nn.Module):
    """Two projections, C -> 4C -> C, and the activation between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation_name = config.activation
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), each position on its own."""
        y: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return y


class Block(nn.Module):
    """Attention, then feed-forward, each normalized before and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)
        self.dropout = config.dropout_of("residual")

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + dropout(self.attn(self.ln_1(x)), self.dropout, self.training)
        return x + dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class TiedHead(nn.Module):
    """A head without parameters: it looks the embedding's weight up, so that nothing can untie them.

    A weight shared by two modules comes apart when a model leaves the meta device or is loaded by assignment.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, or it would be registered here too

    @property
    def weight(self) -> Tensor:
        """(V, C), wte's own."""
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V)."""
        return F.linear(x, self.weight)


class GPT(nn.Module):
    """A GPT of the given shape, freshly initialized."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.context_length = config.context_length
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = config.dropout_of("embedding")
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias) if config.final_norm else nn.Identity()
        self.lm_head = (
            TiedHead(self.wte) if config.tie_weights else nn.Linear(config.n_embd, vocab_size, bias=config.head_bias)
        )
        if config.init == "gpt2" and not self.wte.weight.is_meta:
            _init_as_gpt2(self)

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained; a tied head adds none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, T, V); with targets (B, T) -> their mean loss, nats per token."""
        x = (self._compiled if self._compiled and self.training else self.hidden)(tokens)
        if targets is not None:
            bias, compiled = getattr(self.lm_head, "bias", None), self._compiled is not None
            loss: Tensor = head_loss(x, self.lm_head.weight, bias, targets, compiled)
            return loss
        logits: Tensor = self.lm_head(x)
        return logits

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """From now on train compiled: what leads to the head as one, and the loss by itself.

        Each size that a pass has is compiled by itself, and only passes are. Otherwise what was run before, such as an
        evaluation, would decide which code a step gets, and a run that is continued would get another.
        """
        self._compiled = torch.compile(self.hidden, *args, dynamic=False, **kwargs)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> what the head reads (B, T, C)."""
        T = tokens.shape[1]
        if self.context_length < T:
            raise ConfigError(f"a sequence of {T} tokens is longer than model.context_length={self.context_length}")
        x = dropout(self.wte(tokens) + self.wpe.weight[:T], self.dropout, self.training)
        for block in self.h:
            x = block(x)
        normed: Tensor = self.ln_f(x)
        return normed

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, V) of the token after the last; no dropout, no gradients."""
        with evaluating(self), torch.inference_mode():
            logits: Tensor = self.lm_head(self.hidden(tokens)[:, -1])
            return logits


def unfilled(config: ModelConfig, vocab_size: int, device: torch.device | str) -> GPT:
    """A GPT whose parameters have room and no values yet, on the meta device not even room."""
    with torch.device(device), _NoStartingValues():
        return GPT(config, vocab_size)


class _NoStartingValues(TorchFunctionMode):
    """Draws nothing for layers that are made inside: it would be for nothing, and on the meta device takes a second."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return given.get("tensor") if function in _DRAWING else function(*args, **given)


_DRAWING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and the mode of before after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def _init_as_gpt2(model: GPT) -> None:
    """Weights normal with deviation 0.02, projections into the residual stream 0.02 / sqrt(2 n_layer), biases 0.

    (Radford et al. 2019, section 2.3, whose factor 1/sqrt(N) counts N = 2 n_layer residual additions.)
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * model.config.n_layer))
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
