"""How much of the device a training speed uses."""

import torch

from job.infra.device import Numerics
from job.model.gpt import GPT

# Dense peaks from NVIDIA's datasheets, FLOP/s: bf16, of the V100 fp16. All words of a key are in the GPU's name; the
# first that fits counts, so those with more words stand before those with less.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100 PCIE": 112e12,
    "V100": 125e12,
}


def training_flops_per_token(model: GPT) -> float:
    """FLOPs of forward and backward per token: 6 per parameter in a matrix product, 12 L T HD for attention.

    (Chowdhery et al. 2022, appendix B; look-ups cost nothing, the head counts once, tied or not.)
    """
    config = model.config
    blocks = sum(parameter.numel() for parameter in model.h.parameters() if parameter.dim() == 2)
    head = model.vocab_size * config.n_embd
    attention = 12 * config.n_layer * config.context_length * config.n_head * config.head_width
    return 6.0 * (blocks + head) + attention


def datasheet_peak() -> float | None:
    """Dense bf16 FLOP/s of the present GPU by its maker's datasheet; None where it is not known."""
    words = set(torch.cuda.get_device_name().replace("-", " ").split())
    return next((peak for named, peak in _PEAKS.items() if words.issuperset(named.split())), None)


def mfu(model: GPT, numerics: Numerics, tokens_per_second: float) -> float | None:
    """Share of the peak of all devices that a speed amounts to; None where the peak is not known."""
    if numerics.device != "cuda" or numerics.precision == "fp32":
        return None
    peak = datasheet_peak()
    return None if peak is None else training_flops_per_token(model) * tokens_per_second / (peak * numerics.world_size)
