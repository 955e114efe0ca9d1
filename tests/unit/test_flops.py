"""What a training speed is held to: the peak that the maker's datasheet gives a GPU, known by its name."""

from dataclasses import replace

import pytest
import torch

from job.config import ModelConfig
from job.infra.device import Numerics
from job.model.gpt import unfilled
from job.training.flops import datasheet_peak, mfu, training_flops_per_token

MODEL = unfilled(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=16), 64, "meta")
ON_GPU = Numerics(device="cuda", precision="bf16", compile=True, deterministic=False, threads=1)


@pytest.fixture
def gpu(monkeypatch):
    """Have a GPU of this name."""
    return lambda name: monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA H20", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_each_gpu_has_its_own_peak(gpu, name, teraflops):
    """As torch names them; what is not known is not guessed."""
    gpu(name)

    assert datasheet_peak() == (None if teraflops is None else teraflops * 1e12)


@pytest.mark.parametrize("gpus", [1, 8])
def test_mfu_is_of_the_datasheets_peak(gpu, gpus):
    """A speed that keeps half of all GPUs' peaks busy is 0.5."""
    gpu("NVIDIA L4")
    speed = 0.5 * gpus * 121e12 / training_flops_per_token(MODEL)

    assert mfu(MODEL, replace(ON_GPU, world_size=gpus), speed) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "numerics"),
    [
        ("NVIDIA GeForce RTX 4090", ON_GPU),
        ("NVIDIA L4", replace(ON_GPU, precision="fp32")),
        ("NVIDIA L4", replace(ON_GPU, device="cpu")),
    ],
)
def test_no_mfu_without_a_peak(gpu, name, numerics):
    """A GPU nobody knows, another precision than the datasheet's, no GPU."""
    gpu(name)

    assert mfu(MODEL, numerics, 1e6) is None
