"""What the machine could do at best: the rate of a large matrix product, measured where and when the steps are."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

_SIZE = {"cpu": 4096, "cuda": 8192, "mps": 4096}  # rows and columns: large enough for the best rate
_SECONDS = 2.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of the best of several square products in `precision`."""
    n, dtype = _SIZE[device.type], DTYPES[precision]
    one, other = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    best = min(timed(lambda: torch.mm(one, other, out=out), device, _SECONDS))
    return 2 * n**3 / best


def timed(work: Callable[[], Tensor], device: torch.device, seconds: float, at_least: int = 3) -> list[float]:
    """Seconds of each call of `work`, after one that does not count; many short ones are timed together."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    together = max(1, int(0.05 / max(1e-9, time.perf_counter() - started)))  # the clock and the wait weigh nothing
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < at_least or time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(together):
            work()
        synchronize(device)
        found.append((time.perf_counter() - started) / together)
    return found


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
