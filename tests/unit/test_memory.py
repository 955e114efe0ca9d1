"""What is said when memory is not enough: what was asked, what there is, and a setting that fits."""

import threading

import pytest
import torch

from job.config_file import load_config
from job.infra.device import choose_numerics
from job.training.memory import Memory
from job.training.room import Room, advice

GIB = 1 << 30


@pytest.fixture
def room():
    settings = ["run_uri=unset", "runtime.device=cpu", "runtime.threads=1", "model.n_layer=1", "model.n_embd=32"]
    config = load_config(overrides=[*settings, "training.batch_size=64", "training.micro_batch_size=16"]).config
    return Room(config, choose_numerics(config.runtime, None), 99)


def need(gib, a_sequence=GIB, sequences=16):
    """So much for the state, and for a sequence with what the C library keeps of it."""
    names = ("gradients", "optimizer", "head", "tied", "buckets", "whole", "whole_blocks", "casts", "snapshot")
    parts = {"passes": 2, **dict.fromkeys(names, 0)}
    return Memory(model=gib * GIB, a_sequence=round(a_sequence / 1.3), sequences=sequences, **parts)


@pytest.mark.parametrize(("total", "rows"), [(8.1, 4), (7.1, 2), (5.1, 1), (4.1, 0), (2, 0)])
def test_sequences_that_fit(total, rows):
    """A power of two of sequences, and none where not even one fits."""
    assert need(4).sequences_within(round(total * GIB)) == rows


def test_the_nearest_setting_is_named():
    """What is asked, what is free, and the largest pass that fits."""
    said = advice(need(4), total=9 * GIB, free=3 * GIB)

    assert "3.0 GiB of 9.0 GiB are free" in said
    assert "16 sequences at once take about 20.0 GiB" in said
    assert "training.micro_batch_size=4" in said


def test_an_estimate_that_was_too_low_still_leads_to_less():
    """What has just failed is never proposed again: half of it is."""
    assert "training.micro_batch_size=8" in advice(need(1, a_sequence=100), total=9 * GIB, free=GIB)


@pytest.mark.parametrize("too_much", [need(9), need(1, sequences=1)], ids=["no sequence fits", "one was too much"])
def test_where_nothing_fits(too_much):
    """A smaller model is asked for, not a pass of no sequences, nor of the one that has just failed."""
    said = advice(too_much, total=8 * GIB, free=GIB)

    assert "micro_batch_size" not in said
    assert "model.n_layer" in said


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), MemoryError("no room")],
    ids=["device", "host"],
)
def test_an_error_is_explained(room, error):
    """Torch's own words stay, and become an error that the command ends with 1 for, without a traceback."""
    with pytest.raises(MemoryError, match=r"training\.micro_batch_size=") as raised, room.explained():
        raise error

    assert str(error) in str(raised.value)


def test_torchs_error_of_the_host(room):
    """A real allocation that no machine has: told with what was asked."""
    asked = r"tried to allocate 4611686018427387904 bytes.*; .*micro_batch_size"
    with pytest.raises(MemoryError, match=asked), room.explained():
        torch.empty(1 << 60, dtype=torch.float32)


def test_a_thread_that_cannot_be_started(room):
    """A stack that no machine has room for: said to be want of memory, or of leave to start more."""
    before = threading.stack_size(1 << 50)
    try:
        with pytest.raises(MemoryError, match=r"no room for another thread.*; .*micro_batch_size"), room.explained():
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)


def test_other_errors_pass(room):
    """A bug is a bug."""
    with pytest.raises(RuntimeError, match="shapes"), room.explained():
        raise RuntimeError("shapes do not match")
