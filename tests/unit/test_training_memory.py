"""Loading a checkpoint takes the memory of what is loaded, not of a second copy of it.

Measured is anonymous memory (RssAnon): what a process has filled itself and the kernel cannot take back. Peak RSS
(`ru_maxrss`) would also count the pages of the stored file, which is mapped: those belong to the page cache, go when
memory is needed, and look like a second copy where there is none. Each load is in a process of its own, and peaks are
those of a thread that looks every millisecond: a copy of the model takes a hundred times as long to make.
"""

import multiprocessing
import shutil
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from job.checkpoint import history
from job.checkpoint.events import Segment
from job.checkpoint.store import CheckpointStore
from job.config import plain
from job.config_file import load_config
from job.data.alphabets import ByteTokenizer
from job.data.loader import Batch
from job.infra.device import choose_numerics
from job.infra.storage import open_store
from job.model.weights import find_weights, load_weights
from job.training.learner import build_learner
from job.training.loading import load_run
from job.training.resume import load_newest
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState, restore
from tests.tensorflow.bundle import write_bundle
from tests.unit.weights_support import listed, openai_sizes, openai_variables, write_huggingface
from tests.unit.weights_support import model as small_model

LAYERS, WIDTH = 8, 512
MODEL = 4 * (LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + (257 + 8 + 2) * WIDTH)  # bytes of 25 million parameters
LARGEST = 4 * 4 * WIDTH**2  # bytes of a tensor
MARGIN = 24 << 20  # threads, buffers and what Python needs; a quarter of a second copy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by Linux's /proc")


def settings(folder, layers=LAYERS):
    return load_config(
        overrides=[
            f"run_uri={folder}/run",
            "data.tokenizer=byte",
            f"model.n_layer={layers}",
            f"model.n_embd={WIDTH}",
            "model.context_length=8",
            "runtime.device=cpu",
        ]
    ).config


def fresh_learner(config, restoring):
    return build_learner(config, choose_numerics(config.runtime, None), ByteTokenizer.vocab_size, restoring)


def save_a_run(folder):
    """A run whose only checkpoint is after one step."""
    config = settings(folder)
    learner = fresh_learner(config, restoring=False)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    learner.update(learner.backward(Batch(tokens, tokens, b""), 1), 1e-3, 1.0)
    checkpoints = CheckpointStore(open_store(config.run_uri, config.storage))
    checkpoints.claim({})
    facts = {"config": plain(config), "eval": {"val_loss": None}}
    tokenizer = ByteTokenizer().to_json()
    state, events = TrainingState(step=1), Segment(b"", 0)
    snapshot = take_snapshot(HostMemory(), state, learner, tokenizer=tokenizer, events=events, facts=facts)
    checkpoints.save(snapshot.checkpoint())


def load_for_use(folder):
    """Bytes that the model of the run took at most."""
    config = settings(folder)
    with peak() as found:
        loaded = load_run(config, "last")
    assert loaded.model.parameter_count * 4 == MODEL
    return max(found)


def load_to_continue(folder):
    """Bytes that model and optimizer of the run took at most."""
    config = settings(folder)
    checkpoints = CheckpointStore(open_store(config.run_uri, config.storage))
    checkpoints.log.refresh()
    with peak() as found:
        learner = fresh_learner(config, restoring=True)
        load_newest(
            checkpoints,
            history.checkpoints(checkpoints.records),
            lambda files, record: restore(files, record, learner),
        )
    assert len(learner.optimizer.state) == len(list(learner.model.parameters()))
    return max(found)


@contextmanager
def peak():
    """Anonymous bytes beyond those of before, as seen every millisecond inside the block and at its end."""
    fresh_learner(settings("unset", layers=1), restoring=True)  # torch imports 70 MB for its first model without values
    before, over = anonymous(), threading.Event()
    seen = []

    def look():
        while not over.wait(0.001):
            seen.append(anonymous() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        seen.append(anonymous() - before)
        over.set()
        watcher.join()


def anonymous():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def in_a_process(work, folder):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, folder).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    save_a_run(folder)
    yield folder
    shutil.rmtree(folder)


def test_a_model_for_use_is_loaded_once(folder):
    """At most the model, its largest tensor once more, and a margin."""
    assert 0.9 * MODEL < in_a_process(load_for_use, folder) < MODEL + LARGEST + MARGIN


def test_a_run_to_continue_is_loaded_once(folder):
    """At most model and moments, their largest tensor once more, and a margin."""
    assert 2.9 * MODEL < in_a_process(load_to_continue, folder) < 3 * MODEL + LARGEST + MARGIN


def load_weights_of_others(layout, folder):
    """Bytes that the model took at most, from a folder in a layout that turns every matrix."""
    files = listed(folder / layout)
    load_weights(find_weights(listed(folder / "small"), "small"))  # what torch imports for its first load
    with peak() as seen:
        model = load_weights(find_weights(files, layout))
    assert model.parameter_count * 4 == MODEL
    return max(seen)


def test_weights_of_others_are_loaded_once(folder):
    """At most the model, its largest tensor once more, and a margin, though every matrix lies the other way round."""
    ours = fresh_learner(settings(folder), restoring=False).model
    write_huggingface(folder / "huggingface", ours)
    write_bundle(folder / "openai", openai_variables(ours), openai_sizes(ours))
    write_huggingface(folder / "small", small_model())

    for layout in ("huggingface", "openai"):
        found = in_a_process(partial(load_weights_of_others, layout), folder)  # no room is left over from another one

        assert 0.9 * MODEL < found < MODEL + LARGEST + MARGIN
