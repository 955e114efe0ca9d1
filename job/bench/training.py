"""How fast a config trains here: real steps of the job's own learner on random tokens, so that no corpus is needed."""

import itertools
import resource
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from job.bench.limits import matmul_peak, synchronize, timed
from job.config import Config
from job.data.alphabets import ByteTokenizer
from job.data.loader import Batch
from job.training.flops import datasheet_peak, training_flops_per_token
from job.training.learner import Learner, build_learner
from job.training.numerics import settle_numerics
from job.training.randomness import seed_for, seed_torch
from job.training.text import read_text

_KNOWN_SIZES = {"gpt2": 50257, "byte": ByteTokenizer.vocab_size}


def measure_training(config: Config, seconds: float) -> dict[str, Any]:
    """Step time, speed, share of the limits and memory of `config`, measured for about `seconds`."""
    learner = learner_for(config)
    started = time.perf_counter()
    step = Steps(learner, config)
    step()
    synchronize(learner.device)
    first = time.perf_counter() - started
    found = timed(step, learner.device, seconds)
    memory = peak_memory(learner.device)
    speed = config.tokens_per_step / statistics.median(found)
    flops = training_flops_per_token(learner.model)
    peak = matmul_peak(learner.device, learner.numerics.precision)
    told = datasheet_peak() if learner.device.type == "cuda" else None
    return {
        "numerics": learner.numerics.plain(),
        "parameters": learner.model.parameter_count,
        "tokens_per_step": config.tokens_per_step,
        "first_step_seconds": first,
        "step_seconds": statistics.median(found),
        "best_step_seconds": min(found),
        "tokens_per_second": speed,
        "flops_per_token": flops,
        "matmul_peak_flops": peak,
        "mfu": flops * speed / peak,
        "datasheet_peak_flops": told,
        "datasheet_mfu": None if told is None else flops * speed / told,
        "peak_memory_bytes": memory,
    }


def learner_for(config: Config) -> Learner:
    """A fresh learner with the numerics that a run of `config` would begin with."""
    return build_learner(config, settle_numerics(config, None), vocabulary(config), restoring=False)


def vocabulary(config: Config) -> int:
    """Tokens of the config's tokenizer; the corpus is read only where they depend on it."""
    if known := _KNOWN_SIZES.get(config.data.tokenizer):
        return known
    return read_text(config, lambda _: None, lambda *_: None).tokenizer.vocab_size


class Steps:
    """Updates as the trainer makes them: seed, gradients, clipping, optimizer; nobody waits for a loss."""

    def __init__(self, learner: Learner, config: Config) -> None:
        self._learner, self._config, self._numbers = learner, config, itertools.count()
        rows, T = config.training.batch_size, config.model.context_length
        generator = torch.Generator().manual_seed(config.seed)
        windows = torch.randint(learner.model.vocab_size, (rows, T + 1), generator=generator)
        pinned = learner.device.type == "cuda"
        inputs, targets = (part.contiguous() for part in (windows[:, :-1], windows[:, 1:]))
        self._batch = Batch(inputs.pin_memory(), targets.pin_memory(), b"") if pinned else Batch(inputs, targets, b"")

    def __call__(self) -> Tensor:
        config, learner = self._config, self._learner
        seed_torch(learner.device, seed_for(config.seed, "step", next(self._numbers), 0))
        loss = learner.backward(self._batch, config.training.rows_per_pass)
        return learner.update(loss, config.optimizer.learning_rate, config.optimizer.clip_norm)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the device, or of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
