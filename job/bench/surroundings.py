"""What goes on around the steps: reading text, saving and restoring, and writing text with the model."""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from job.bench.limits import DTYPES
from job.bench.training import Steps, learner_for
from job.checkpoint.events import Segment
from job.checkpoint.store import CheckpointStore
from job.config import Config
from job.infra.directory_store import DirectoryObjectStore
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.projection import fastest_dtype
from job.model.rows import CachedRows
from job.training.restoring import restore_newest
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState
from job.training.text import Text, read_text

_PROMPT, _NEW = 32, 100  # tokens
_BATCHES = 200
_SAVES = 3


def measure_data(config: Config, _seconds: float) -> dict[str, Any]:
    """What the corpus takes to become tokens, again when it is cached, and what a batch takes to be read.

    One from elsewhere is not pulled only to be measured: of it, the first time is what the cache as it is leaves to do.
    """
    with tempfile.TemporaryDirectory(prefix="gpt-job-bench-") as folder:
        from_elsewhere = any(uri.startswith(("https://", "http://", "s3://")) for uri in config.data.corpus)
        fresh = config if from_elsewhere else replace(config, data=replace(config.data, cache_dir=folder))
        cold, text = _read(fresh)
        warm, text = _read(fresh)
        tokens = sum(split.tokens for split in text.files.splits)
        size = sum(split.bytes for split in text.files.splits)
        started = time.perf_counter()
        batches = text.batches(fresh, 0, (), pin_memory=False)
        next(batches)
        first = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(_BATCHES):
            next(batches)
        each = (time.perf_counter() - started) / _BATCHES
        batches.close()
    return {
        "corpus_bytes": size,
        "corpus_tokens": tokens,
        "cold_seconds": cold,
        "bytes_per_second": size / cold,
        "warm_seconds": warm,
        "first_batch_seconds": first,
        "batch_seconds": each,
    }


def _read(config: Config) -> tuple[float, Text]:
    started = time.perf_counter()
    text = read_text(config, lambda _: None, lambda *_: None)
    return time.perf_counter() - started, text


def measure_checkpoint(config: Config, _seconds: float) -> dict[str, Any]:
    """What training waits for a save into a folder, until it is durable, and what a restore takes."""
    learner = learner_for(config)
    Steps(learner, config)()
    memory = HostMemory(pinned=learner.device.type == "cuda")
    waits, durable = [], []
    with tempfile.TemporaryDirectory(prefix="gpt-job-bench-", dir=Path.cwd()) as folder:
        checkpoints = CheckpointStore(DirectoryObjectStore(Path(folder)))
        checkpoints.claim({})
        for step in range(1, _SAVES + 1):
            started = time.perf_counter()
            facts = {"eval": {"val_loss": None}}
            state = TrainingState(step=step)
            taken = take_snapshot(memory, state, learner, tokenizer=b"{}", events=Segment(b"", 0), facts=facts)
            waits.append(time.perf_counter() - started)
            record = checkpoints.save(taken.checkpoint()).record
            durable.append(time.perf_counter() - started)
        started = time.perf_counter()
        restore_newest(checkpoints, [record], learner)
        restored = time.perf_counter() - started
    return {
        "bytes": sum(entry.size for entry in record.objects),
        "wait_seconds": statistics.median(waits[1:]),  # the first one's memory is new
        "durable_seconds": statistics.median(durable),
        "restore_seconds": restored,
    }


def measure_generation(config: Config, _seconds: float) -> dict[str, Any]:
    """What a new token takes, one sequence at a time, from a prompt of 32 tokens or half the context."""
    model = learner_for(config).model.eval()
    dtype = fastest_dtype(model.wte.weight.device)
    T = config.model.context_length
    prompt = list(range(min(_PROMPT, T // 2, model.vocab_size)))
    rows = CachedRows(Decoder(model, dtype), 1)
    count = min(_NEW, T - len(prompt))
    for _ in generate(rows, prompt, max_new_tokens=3):
        pass
    started = time.perf_counter()
    arrived = [time.perf_counter() for _ in generate(rows, prompt, max_new_tokens=count)]
    return {
        "dtype": next(name for name, known in DTYPES.items() if known == dtype),
        "prompt_tokens": len(prompt),
        "new_tokens": len(arrived),
        "first_token_seconds": arrived[0] - started,
        "tokens_per_second": len(arrived) / (arrived[-1] - started),
        "threads": torch.get_num_threads(),
    }
