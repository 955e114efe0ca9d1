"""What launchers say in the environment, and whom this process is to start."""

import pytest

from job.errors import ConfigError
from job.infra.place import Crew, Place, crew_of, place_of
from job.training.spread import owners

MASTER = {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}
PET = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_MASTER_ADDR": "first", "PET_MASTER_PORT": "29500"}


def test_alone_without_a_word():
    """An environment that says nothing is one process."""
    assert (place_of({}), crew_of(None, {})) == (Place(), None)


def test_torchruns_words():
    """RANK, WORLD_SIZE and their local kin are the place."""
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MASTER}

    assert place_of(said) == Place(rank=5, world_size=8, local_rank=1, local_world_size=4)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MASTER}, "RANK='2' must be a number from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "two", **MASTER}, "WORLD_SIZE='two'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
    ],
)
def test_half_a_place_is_refused(said, problem):
    """A place that is none is 78, with the variable and its value."""
    with pytest.raises(ConfigError, match=problem):
        place_of(said)


def test_kubeflows_words():
    """PET_* say how many machines and processes there are; an Indexed Job's index stands in for the node's rank."""
    assert crew_of(None, {**PET, "PET_NODE_RANK": "1"}) == Crew(processes=4, nodes=2, node_rank=1, master="first:29500")
    assert crew_of("gpu", {**PET, "JOB_COMPLETION_INDEX": "0"}) == Crew(processes="gpu", nodes=2, master="first:29500")


@pytest.mark.parametrize(
    ("processes", "said", "problem"),
    [
        ("two", {}, "--processes='two'"),
        ("0", {}, "--processes='0'"),
        (None, {**PET, "PET_NNODES": "1:4"}, "PET_NNODES='1:4'"),
        (None, {"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "MASTER_ADDR"),
        (None, PET, "PET_NODE_RANK=''"),
    ],
)
def test_half_a_crew_is_refused(processes, said, problem):
    """What names no number or no first machine is 78, with the word and its value."""
    with pytest.raises(ConfigError, match=problem):
        crew_of(processes, said)


def test_a_worker_starts_nobody():
    """Who was started by an agent is a rank, whatever else the environment and the flags say."""
    assert crew_of("8", {**PET, "TORCHELASTIC_RUN_ID": "1"}) is None


def test_tensors_are_shared_out_evenly():
    """Each tensor has one owner, the same wherever it is asked, and no rank has much more than another."""
    sizes = {f"h.{n}": size for n, size in enumerate([100, 90, 40, 40, 30, 20, 10, 5, 5])}
    found = owners(sizes, 3)
    loads = [sum(sizes[name] for name in sizes if found[name] == rank) for rank in range(3)]

    assert found == owners(dict(reversed(sizes.items())), 3)
    assert max(loads) - min(loads) <= 20
