"""A run continued on another machine, or with another config: what is used again, what is marked, what is refused."""

import json

import pytest
import torch

from job import pretrain
from job.checkpoint import history
from job.checkpoint.store import CheckpointStore
from job.errors import ConfigError
from job.infra import device
from job.infra.progress import SilentProgress
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from tests.chaos.harness import tiny
from tests.chaos.small_run import SMALL
from tests.chaos.test_damage import signed
from tests.memory_store import MemoryObjectStore

ALIKE = (*SMALL, "optimizer.schedule=constant", "training.eval_every=100")


@pytest.fixture
def train(corpus, monkeypatch, tmp_path):
    """Trains, or continues, the run in a store; its newest record."""
    threads = torch.get_num_threads()

    def run(objects, steps, *settings, text=corpus):
        monkeypatch.setattr(pretrain, "open_store", lambda *_: objects)
        resolved = tiny(tmp_path / "run", text, *ALIKE, f"training.max_steps={steps}", *settings)
        pretrain.pretrain(resolved, StopSignal(30.0), SilentProgress(), RunStatus())
        checkpoints = CheckpointStore(objects)
        checkpoints.log.refresh()
        return history.checkpoints(checkpoints.records)[-1]

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run of five steps with one thread in fp32; not to be written to."""
    objects, threads = MemoryObjectStore(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "open_store", lambda *_: objects)
        resolved = tiny(tmp_path_factory.mktemp("run"), corpus, *ALIKE, "training.max_steps=5")
        pretrain.pretrain(resolved, StopSignal(30.0), SilentProgress(), RunStatus())
    torch.set_num_threads(threads)
    return objects


def with_numerics(objects, **changed):
    """A copy of the run whose newest checkpoint was computed with something else."""
    copy = objects.copy()
    key = max(key for key in copy.keys("log/") if json.loads(copy.read(key))["kind"] == "checkpoint")
    record = json.loads(copy.read(key))
    record["numerics"] |= changed
    copy.objects[key] = signed(record)
    return copy


def test_what_auto_became_is_used_again(trained, train, monkeypatch):
    """On a machine with seven cores that prefers bf16, a run of one thread in fp32 stays one, and is not marked."""
    monkeypatch.setattr(device, "usable_cores", lambda: 7)
    monkeypatch.setattr(device, "_best_precision", lambda *_: "bf16")
    record = train(trained.copy(), 10, "runtime.threads=none", "runtime.device=auto", "runtime.precision=auto")

    assert (record.facts["numerics"]["threads"], record.facts["numerics"]["precision"]) == (1, "fp32")
    assert "numerics_changed" not in record.facts


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("runtime.threads=2", "threads was 1, is 2"),
        ("runtime.precision=bf16", "precision was fp32, is bf16"),
        ("runtime.deterministic=true", "deterministic was False, is True"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.002, is 0.5"),
        ("training.micro_batch_size=4", "training.micro_batch_size was 2, is 4"),
    ],
)
def test_a_change_that_is_asked_for_is_made_and_marked(trained, train, setting, said):
    """Another number of threads, precision or rate: allowed, and the records say that bits differ from here on."""
    try:
        record = train(trained.copy(), 10, setting)
    finally:
        torch.use_deterministic_algorithms(mode=False)

    assert record.facts["numerics_changed"] == [said]


def test_another_torch_is_marked(trained, train):
    """The run goes on, and its records say with what it was computed before."""
    record = train(with_numerics(trained, torch="2.0.1"), 10)

    assert record.facts["numerics_changed"] == [f"torch was 2.0.1, is {torch.__version__}"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_gone_is_no_reason_to_take_another(trained, train):
    """A run of a GPU is refused without one, unless a person says that a CPU will do: then it is marked."""
    objects = with_numerics(trained, device="cuda")
    before = dict(objects.objects)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        train(objects, 10, "runtime.device=auto")
    assert objects.objects == before

    assert train(objects, 10, "runtime.device=cpu").facts["numerics_changed"] == ["device was cuda, is cpu"]


@pytest.mark.parametrize(
    "setting",
    [
        "seed=2",
        "model.n_layer=2",
        "model.dropout=0.2",
        "model.context_length=16",
        "data.tokenizer=char",
        "data.split=[0.7, 0.2, 0.1]",
        "data.order=random",
        "data.stride=4",
        "training.batch_size=8",
    ],
)
def test_another_identity_is_refused(trained, train, setting):
    """A run is of one model, corpus, order and seed: 78 names the setting, and nothing is written."""
    objects = trained.copy()
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        train(objects, 10, setting)

    assert objects.objects == trained.objects


def test_another_text_under_the_same_name_is_refused(trained, train, corpus, tmp_path):
    """The corpus is what it says, not what it is called."""
    objects, before = trained.copy(), corpus.read_bytes()
    corpus.write_bytes(before.replace(b"line 3", b"line 4"))
    try:
        with pytest.raises(ConfigError, match="corpus is"):
            train(objects, 10)
    finally:
        corpus.write_bytes(before)

    assert objects.objects == trained.objects
