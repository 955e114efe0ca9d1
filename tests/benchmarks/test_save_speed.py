"""What a save costs: GPT-2's smallest shape with an untied head and AdamW's moments, 1.95 GB.

Each figure is a ratio of two things done side by side in one run, the median of several rounds. The machine must have
nothing else to do, and room for the state three times over in memory and on disk.
"""

import os
import statistics
import time
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from job.checkpoint.events import EventLog, Segment
from job.checkpoint.store import CheckpointStore
from job.config import CheckpointConfig, TrainingConfig
from job.config_file import load_config
from job.data.loader import Batch
from job.infra.device import choose_numerics
from job.infra.directory_store import DirectoryObjectStore, flush
from job.infra.health import Pulse
from job.infra.metrics import Metrics
from job.infra.progress import SilentProgress
from job.infra.status import RunStatus
from job.training.learner import build_learner
from job.training.narrator import Channels, Narrator
from job.training.saver import Saver
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState
from job.training.tensors import model_tensors, optimizer_tensors
from job.training.timetable import Timetable
from tests.benchmarks.side_by_side import seconds, table

pytestmark = pytest.mark.slow
ROUNDS = 5
V, T = 50257, 256
FACTS = {"eval": {"val_loss": None}}


@pytest.fixture(scope="module")
def learner():
    """The learner of the `verdict` preset after one update."""
    config = load_config("verdict").config
    built = build_learner(config, choose_numerics(config.runtime, None), V, restoring=False)
    update(built)
    return built


def update(learner):
    tokens = torch.randint(V, (2, T + 1), generator=torch.Generator().manual_seed(0))
    learner.update(learner.backward(Batch(tokens[:, :-1], tokens[:, 1:], b""), 2), 1e-4, None)


def state_of(learner):
    return {**model_tensors(learner.model), **optimizer_tensors(learner.model, learner.optimizer)}


@pytest.fixture
def saver(tmp_path):
    """A saver on a folder, as a run has it."""
    channels = Channels(Metrics(CollectorRegistry()), Pulse(), SilentProgress(), RunStatus())
    narrator = Narrator(
        channels, EventLog(tmp_path / "events.jsonl", [], 1), Timetable(TrainingConfig(max_steps=1), 1), 1, True
    )
    checkpoints = CheckpointStore(DirectoryObjectStore(tmp_path / "run"))
    checkpoints.claim({})
    saver = Saver(checkpoints, CheckpointConfig(keep_last=2), narrator, may_delete=False)
    yield saver
    saver.close()


@pytest.fixture
def snapshots(learner):
    """What the trainer gives to the saver."""
    memory = HostMemory()

    def at(step):
        state = TrainingState(step=step)
        return lambda: take_snapshot(memory, state, learner, tokenizer=b"{}", events=Segment(b"", 0), facts=FACTS)

    return at


def clear(folder: Path):
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()


def test_what_training_waits_for(learner, saver, snapshots):
    """`begin` holds the loop up for at most 1.25 times one copy of the state from memory to memory."""
    state = state_of(learner)
    room = {name: torch.empty_like(tensor) for name, tensor in state.items()}

    def copy():
        for name, tensor in state.items():
            room[name].copy_(tensor)

    copy()
    copies, stalls = [], []
    for step in range(ROUNDS + 1):
        copies.append(seconds(copy))
        stalls.append(seconds(lambda step=step: saver.begin(step, snapshots(step))))
        saver.wait()
    gigabytes = sum(tensor.nbytes for tensor in state.values()) / 1e9
    ratios = [stall / one for stall, one in zip(stalls[1:], copies[1:], strict=True)]
    table(
        f"{gigabytes:.2f} GB, seconds that training waits for a save (the first: {stalls[0]:.3f}, memory is new)",
        one_copy_in_memory=copies[1:],
        save=stalls[1:],
        ratio=ratios,
    )

    assert statistics.median(ratios) <= 1.25


def test_until_it_is_durable(learner, saver, snapshots, tmp_path):
    """From `begin` to the committed record: at most 1.3 times a plain write and fsync of the same bytes."""
    files = {name: b"".join(pieces) for name, pieces in snapshots(0)().checkpoint().files.items()}

    def plain():
        folder = tmp_path / "plain"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            with (folder / name).open("wb", buffering=0) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        flush(folder)

    def save(step):
        saver.begin(step, snapshots(step))
        saver.wait()

    plains, saves = [], []
    for step in range(1, ROUNDS + 1):
        plains.append(seconds(plain))
        clear(tmp_path / "plain")
        saves.append(seconds(lambda step=step: save(step)))
        clear(tmp_path / "run" / "data")
    ratios = [one / other for one, other in zip(saves, plains, strict=True)]
    table("seconds until a save is durable in a folder", plain_write_and_fsync=plains, save=saves, ratio=ratios)

    assert statistics.median(ratios) <= 1.3


def test_what_training_loses_meanwhile(learner, saver, snapshots, tmp_path):
    """A save beside training costs it at most 1.2 times the save's own CPU seconds, divided by the cores."""

    def steps(until=lambda: False, count=0):
        """Seconds of the steps, and how many: `count`, or as long as `until` does not hold."""
        started, done = time.perf_counter(), 0
        while done < count or not (count or until()):
            update(learner)
            done += 1
        return time.perf_counter() - started, done

    def landed(step):
        saver.poll()
        return saver.last_step == step

    shares = []
    for step in range(1, ROUNDS + 1):
        before = time.process_time()
        alone, count = steps(count=4)
        of_a_step = (time.process_time() - before) / count
        before = time.process_time()
        stall = seconds(lambda step=step: saver.begin(step, snapshots(step)))
        beside, done = steps(until=lambda step=step: landed(step))
        own_cpu = time.process_time() - before - done * of_a_step
        lost = stall + beside - done * alone / count
        shares.append(lost / (own_cpu / (os.cpu_count() or 1)))
        print(f"  {done} steps beside a save: lost {lost:.2f} s, the save's own CPU {own_cpu:.2f} s")
        clear(tmp_path / "run" / "data")
    table("training time lost to a save / (its CPU seconds / cores)", ratio=shares)

    assert statistics.median(shares) <= 1.2
