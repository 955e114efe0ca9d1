"""The chain of steps: 32 bytes that prove which data was seen, in which order, with which losses."""

import hashlib
import math
import struct

GENESIS = "0" * 64


def extend(chain: str, step: int, samples: bytes, loss: float, gradient_norm: float) -> str:
    """The chain after `step`, in hex.

    Args:
        chain: The chain before it.
        step: Number of the step, counted from 1.
        samples: Hash of the numbers of the batch's samples, in order.
        loss: Training loss, nats per token, as float32.
        gradient_norm: Norm before clipping, as float32.
    """
    numbers = struct.pack("<Qff", step, _one_nan(loss), _one_nan(gradient_norm))
    return hashlib.sha256(bytes.fromhex(chain) + numbers + samples).hexdigest()


def _one_nan(value: float) -> float:
    """All NaNs as the same one: their bits say nothing."""
    return math.nan if math.isnan(value) else value
