"""What auto becomes for a model on a CPU, and that a run keeps it."""

import pytest
import torch

from job.config_file import load_config
from job.errors import ConfigError
from job.infra.place import ALONE, Place
from job.training.numerics import best_on_cpu, own_numerics, settle_numerics


def config(*overrides, preset="baby-cpu"):
    return load_config(preset, overrides=["run_uri=unset", "runtime.device=cpu", *overrides]).config


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_small_pass_is_computed_by_one_thread():
    """Baby GPT's is; one of as many numbers as torch would cut in two is computed by a thread a core."""
    assert best_on_cpu(config()).threads == 1
    assert best_on_cpu(config("model.context_length=128", "training.batch_size=16")).threads is None


def test_a_small_pass_of_one_of_several(monkeypatch):
    """Half of a batch that is worth two threads is worth one to each of two processes, whatever cores are left."""
    monkeypatch.setattr("job.infra.device.usable_cores", lambda: 8)
    asked = config("model.context_length=128", "training.batch_size=16")

    assert own_numerics(asked, None, ALONE).threads == 8
    assert own_numerics(asked, None, Place(world_size=2, local_world_size=2)).threads == 1
    assert own_numerics(asked, None, Place(rank=1, world_size=2)).threads == 1


def test_threads_that_were_asked_for_or_used_before_stay():
    """Auto speaks only for a run that begins."""
    assert settle_numerics(config("runtime.threads=2"), None).threads == 2
    assert settle_numerics(config(), {"threads": 2}).threads == 2


def test_a_narrow_model_stays_in_fp32():
    """Casting costs more than narrow products gain."""
    assert settle_numerics(config(), None).precision == "fp32"


def test_muon_needs_whole_matrices():
    """In shards there are none: one line says what to take instead."""
    two = Place(rank=0, world_size=2, local_rank=0, local_world_size=2)
    with pytest.raises(ConfigError, match="parallel=ddp"):
        own_numerics(config("optimizer.name=muon", "runtime.parallel=fsdp"), None, two)
    assert own_numerics(config("optimizer.name=muon"), None, ALONE).parallel == "none"


GRAPHS = "runtime.cuda_graphs=true"


@pytest.mark.parametrize(
    ("settings", "world_size", "what"),
    [
        (("runtime.compile=on", "training.micro_batch_size=2", "training.batch_size=8"), 1, "micro_batch_size=2 cuts"),
        (("runtime.compile=on",), 2, "one process, and there are 2"),
        (("runtime.compile=on",), 1, "a GPU"),
    ],
)
def test_what_cuda_graphs_need(settings, world_size, what):
    """One pass a step, one process and a GPU: one line says which is wanting."""
    place = Place(rank=0, world_size=world_size, local_rank=0, local_world_size=world_size)
    with pytest.raises(ConfigError, match=f"runtime.cuda_graphs=true needs .*{what}"):
        own_numerics(config(GRAPHS, *settings), None, place)
