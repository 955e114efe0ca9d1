"""The fastest precision for a model on a CPU."""

from typing import Literal

from job.config import ModelConfig
from job.model.projection import has_bf16_products

_WIDE_ENOUGH = 128  # channels; measured from there on: at 128 a step takes 0.75 of fp32's time, at 768 half


def cpu_precision(model: ModelConfig) -> Literal["bf16", "fp32"]:
    """bf16 products with fp32 weights where the processor multiplies in bf16 and the model is wide; else fp32."""
    return "bf16" if model.n_embd >= _WIDE_ENOUGH and has_bf16_products() else "fp32"
