"""Batches for torch: the right tokens, from any step, for any number of processes."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from job.data import loader
from job.data.gpt2_files import gpt2_tokenizer
from job.data.loader import BatchLoader, StepDataset
from job.data.order import DataOffset, Order
from job.data.prepare import prepare
from job.data.shards import ShardWriter, TokenSplit, token_type
from job.errors import JobError
from tests.unit.data_support import config_for, published, pulled, still


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The tokens 0, 1, ..., 999."""
    with ShardWriter(tmp_path_factory.mktemp("tokens"), "train", token_type(1000), shard_tokens=300) as writer:
        writer.write(np.arange(1000))
    return TokenSplit(writer.paths)


def dataset(split, kind="windows", batch_size=6, **settings):
    return StepDataset(split, Order(kind, len(split), 8, 8, seed=1), batch_size, **settings)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def plain(batches):
    """Batches as lists, which compare."""
    return [(batch.inputs.tolist(), batch.targets.tolist(), batch.samples) for batch in batches]


@pytest.mark.parametrize("kind", ["windows", "random"])
def test_targets_are_the_next_tokens(split, kind):
    """Inputs and targets are (b, T) int64, contiguous, the targets one token later."""
    inputs, targets, _ = dataset(split, kind)[5]

    assert inputs.shape == targets.shape == (6, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(inputs + 1, targets)


@pytest.mark.parametrize("kind", ["windows", "random"])
def test_a_step_is_the_windows_of_its_samples(split, kind):
    """Step s holds the windows of samples s * b ... of the order, from its step on shifted by the offset."""
    order, offsets = Order(kind, len(split), 8, 8, seed=1), [DataOffset(step=171, samples=3)]
    for step, shift in ((0, 0), (1, 0), (170, 0), (171, 3), (100_000, 3)):
        expected = order.starts(np.arange(step * 6 + shift, step * 6 + shift + 6))
        assert dataset(split, kind, offsets=offsets)[step][0][:, 0].tolist() == expected.tolist()


def test_windows_read_together_are_the_same(split, monkeypatch):
    """Whether the windows of many steps are read at once or step by step, batches are equal on every rank."""
    for rank in (0, 1):
        together = [dataset(split, rank=rank, world_size=2)[step] for step in range(3, 400, 7)]
        with monkeypatch.context() as patch:
            patch.setattr(loader, "_TOKENS", 0)
            alone = [dataset(split, rank=rank, world_size=2)[step] for step in range(3, 400, 7)]
        assert plain(together) == plain(alone)


def test_samples_name_the_data(split):
    """`samples` is the same for every rank, and another one where other windows are read."""
    one, other = dataset(split)[3], dataset(split, rank=1, world_size=2)[3]

    assert one.samples == other.samples
    further = dataset(split, offsets=[DataOffset(step=0, samples=1)])
    assert len({dataset(split)[step].samples for step in range(100)} | {further[0].samples}) == 101


@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_is_found_at_once(split, workers):
    """Reading from step n gives what reading from step 0 gives after n steps, with and without workers."""
    whole = take(BatchLoader(dataset(split)).from_step(0), 40)
    late = BatchLoader(dataset(split), workers).from_step(25)

    assert plain(take(late, 15)) == plain(whole[25:])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_ranks_share_out_each_batch(split, world_size):
    """The rows of all ranks, one after the other, are the rows of one process."""
    for step in range(3):
        parts = [dataset(split, rank=rank, world_size=world_size)[step] for rank in range(world_size)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), dataset(split)[step].inputs)


def test_torch_is_not_drawn_from(split):
    """Reading batches leaves torch's own random state as it was."""
    before = torch.get_rng_state()
    take(BatchLoader(dataset(split)).from_step(0), 3)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_dead_worker_is_an_error(split):
    """When a worker is killed the next read ends with a clear error within seconds, and does not hang."""
    batches = BatchLoader(dataset(split), workers=1).from_step(0)
    before = children()
    next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(JobError, match=r"a loader worker died .*data\.workers=0"):
        take(batches, 1000)

    assert time.monotonic() - started < 30


def children():
    """Processes that this one started."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_workers_end_with_the_iterator(split):
    """Closing the iterator ends its workers."""
    before = children()
    batches = BatchLoader(dataset(split), workers=2).from_step(0)
    next(batches)
    started = children() - before
    assert len(started) >= 2
    batches.close()

    assert not children() & started


def test_the_verdict_is_nine_batches(tmp_path):
    """The tutorial's loaders: 18 windows, 4,608 tokens, 9 batches of 2 to train on; 2 windows, 512 to validate."""
    published("vocab.bpe")
    file = published("the-verdict.txt")
    config = config_for(tmp_path, file, tokenizer="gpt2", tokenizer_dir=str(file.parent), split=(0.9, 0.1))
    files = prepare(pulled(config), gpt2_tokenizer(config, still), config, still)
    train, validation = (Order("windows", part.tokens, 256, 256, seed=123) for part in (files.train, files.validation))
    batches = take(BatchLoader(StepDataset(files.train.open(), train, 2)).from_step(0), 9)

    assert (train.windows, validation.windows) == (18, 2)
    assert sum(batch.inputs.numel() for batch in batches) == 4_608
    assert sorted(train.starts(np.arange(18)).tolist()) == list(range(0, 18 * 256, 256))
    assert files.validation.open().windows(validation.starts(np.arange(2)), 256).size == 512
