"""Products of few rows with large weights: what a decoding step spends its time on, nearly all of it reading them."""

import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Projection = Callable[[Tensor], Tensor]  # (N, in) -> (N, out)

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def projection(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = "none") -> Projection:
    """`activation(x W^T + b)` as a function of x (N, in) in `dtype`; the weight is copied.

    On a CPU with oneDNN the copy is in the blocked layout that its kernels read straight through, where F.linear lays
    the weight out anew. For one row in bf16 torch's own kernel is faster still, as fast as the weight can be read, and
    wants it as it is: in bf16 there are two copies, which together take what one takes in fp32.

    Args:
        weight: (out, in).
        activation: none, gelu (GPT-2's tanh form) or relu.
    """
    weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    if not can_be_packed(weight):
        return _plain(weight, bias, activation, F.linear)
    several = _packed(weight, bias, activation)
    if dtype == torch.float32:
        return several
    one = _plain(weight, bias, activation, _without_onednn)
    return lambda x: one(x) if len(x) == 1 else several(x)


def _packed(weight: Tensor, bias: Tensor | None, activation: str) -> Projection:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
    multiply, algorithm = torch.ops.mkldnn._linear_pointwise.default, "tanh" if activation == "gelu" else ""
    return lambda x: multiply(x, packed, bias, activation, [], algorithm)


def _plain(weight: Tensor, bias: Tensor | None, activation: str, multiply: Callable[..., Tensor]) -> Projection:
    weight, finish = weight.clone(), _ACTIVATIONS[activation]
    return lambda x: finish(multiply(x, weight, bias))


def _without_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear by torch's own kernel. The switch is the process's: at worst another thread's product is a slow one."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        return F.linear(x, weight, bias)
    finally:
        torch.backends.mkldnn.enabled = before


def can_be_packed(weight: Tensor) -> bool:
    """Whether this build of torch and this machine have oneDNN's products for such a weight (only x86 was measured)."""
    return (
        weight.device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and _has_onednn()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bf16_products()))
    )


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies in it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and has_bf16_products():
        return torch.bfloat16
    return torch.float32


def has_bf16_products() -> bool:
    """Whether the processor itself multiplies in bf16 (AVX-512 or AMX): emulated, it is slower than fp32."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that will do
    return _has_onednn() and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
