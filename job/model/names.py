"""What the parameters of GPT-2 are called elsewhere, and which of them lie the other way round there.

OpenAI and Hugging Face multiply inputs by (in, out) matrices; ours are (out, in). The rows of `c_attn`, all of q, then
all of k, then all of v, have the same order everywhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = "transformer."  # Hugging Face's, of everything but the head
HEAD, EMBEDDING = "lm_head.weight", "wte.weight"
_TURNED = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, no parameter
_OPENAI = re.compile(r"model/(?:h(\d+)/)?([\w/]+?)(?:/([wbg]))?")
_ENDS = {"w": "weight", "b": "bias", "g": "weight", None: "weight"}


@dataclass(frozen=True, slots=True)
class Naming:
    """How one kind of file names and lays out parameters.

    Args:
        ours: Its name -> ours; None for a tensor that is no parameter.
        turned: Whether matrices are (in, out) there.
        padded: Whether matrices have a first dimension of 1 there.
    """

    ours: Callable[[str], str | None]
    turned: bool = False
    padded: bool = False

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that our parameter `name` of this shape has in such a file."""
        if self.turned and _TURNED.fullmatch(name):
            shape = shape[::-1]
            return (1, *shape) if self.padded else shape
        return shape

    def restored(self, name: str, tensor: Tensor) -> Tensor:
        """A stored tensor as our parameter `name` has it; a view."""
        if self.turned and _TURNED.fullmatch(name):
            return tensor.view(tensor.shape[-2:]).T
        return tensor


def _from_openai(name: str) -> str | None:
    """model/h0/attn/c_attn/w -> h.0.attn.c_attn.weight."""
    match = _OPENAI.fullmatch(name)
    if not match:
        return name
    layer, path, end = match.groups()
    return ".".join(([f"h.{int(layer)}"] if layer else []) + [path.replace("/", "."), _ENDS[end]])


def _from_huggingface(name: str) -> str | None:
    bare = name.removeprefix(PREFIX)
    return None if _BUFFER.fullmatch(bare) else bare


OPENAI = Naming(_from_openai, turned=True, padded=True)
HUGGINGFACE = Naming(_from_huggingface, turned=True)
OWN = Naming(lambda name: name)


def to_huggingface(parameters: Mapping[str, Tensor], query_scale: float = 1.0) -> dict[str, Tensor]:
    """Our parameters as GPT2LMHeadModel has them: its names and layout, zeros for biases that are not there.

    Args:
        parameters: Ours by name, on the host.
        query_scale: What queries are multiplied by, for a model whose attention scale is another.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        scaled = _with_scaled_queries(parameter, query_scale) if ".c_attn." in name else parameter
        there = name if name == HEAD else PREFIX + name
        found[there] = (scaled.T if _TURNED.fullmatch(name) else scaled).contiguous()
        bias = there.removesuffix("weight") + "bias"
        biased = _TURNED.fullmatch(name) or ".ln_" in there
        if biased and there.endswith("weight") and bias.removeprefix(PREFIX) not in parameters:
            found[bias] = torch.zeros(parameter.shape[0])
    return found


def _with_scaled_queries(parameter: Tensor, scale: float) -> Tensor:
    """c_attn's weight (3C, C) or bias (3C,) with its first third times `scale`."""
    if scale == 1:
        return parameter
    C = len(parameter) // 3
    return torch.cat((parameter[:C] * scale, parameter[C:]))
