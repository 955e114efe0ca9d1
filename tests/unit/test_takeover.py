"""An attempt whose run is taken over while it starts: it ends fenced, whatever it has read by then."""

import pytest
import torch

from job import pretrain
from job.checkpoint import history
from job.checkpoint.store import CheckpointStore
from job.errors import FencedError
from job.infra.progress import SilentProgress
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from tests.chaos.harness import tiny, write_corpus
from tests.memory_store import MemoryObjectStore


class WatchedStore(MemoryObjectStore):
    """Calls `before` ahead of each reading of a checkpoint's or record's bytes."""

    def before(self, key):
        pass

    def get(self, key, target, *watching):
        self.before(key)
        return super().get(key, target, *watching)

    def keys(self, prefix):
        self.before(prefix)
        return super().keys(prefix)


@pytest.fixture
def objects(monkeypatch):
    store = WatchedStore()
    monkeypatch.setattr(pretrain, "open_store", lambda *_: store)
    return store


@pytest.fixture
def train(tmp_path):
    corpus, threads = write_corpus(tmp_path), torch.get_num_threads()

    def run(steps):
        settings = (f"training.max_steps={steps}", "training.eval_every=100", "observe.report=false")
        resolved = tiny(tmp_path / "run", corpus, *settings)
        pretrain.pretrain(resolved, StopSignal(30.0), SilentProgress(), RunStatus())

    yield run
    torch.set_num_threads(threads)


def elsewhere(objects):
    """The same objects, as another process sees them."""
    other = MemoryObjectStore()
    other.objects = objects.objects
    return CheckpointStore(other)


def fences(objects):
    """How often the run has been claimed."""
    reader = elsewhere(objects)
    reader.log.refresh()
    return sum(record.kind == "fence" for record in reader.records)


def test_taken_over_before_the_log_is_read_again(objects, train):
    """A second start claims the run just after the first one: the first ends, and has committed nothing."""

    def claim(prefix):
        if prefix == "log/" and fences(objects) == 1:
            elsewhere(objects).claim({})

    objects.before = claim
    with pytest.raises(FencedError):
        train(5)

    assert sorted(key for key in objects.objects if key.startswith("log/")) == [
        "log/000000000001.json",
        "log/000000000002.json",
    ]


def test_taken_over_while_the_checkpoint_is_read(objects, train):
    """A newer attempt prunes what is being restored: that is no damage, and the end is not that of a ruined run."""
    train(5)
    before = fences(objects)

    def prune(key):
        if key.startswith("data/") and fences(objects) == before + 1:
            newer = elsewhere(objects)
            newer.claim({})
            for record in history.checkpoints(newer.records):
                for stored in record.objects:
                    objects.delete(stored.key)

    objects.before = prune
    with pytest.raises(FencedError):
        train(10)
