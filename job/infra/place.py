"""Which process of how many this one is, as launchers say it in the environment; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from job.errors import ConfigError

Processes = int | Literal["gpu"]
ELASTIC = "TORCHELASTIC_RUN_ID"  # elastic's agent, ours or torchrun's, has started this process
_PORTS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One process among those that train a run together; `local` counts those on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


ALONE = Place()


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Processes to start on this machine, one of `nodes` that train together.

    Args:
        master: HOST:PORT of the first machine; None for one machine.
    """

    processes: Processes
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None


def place_of(environ: Mapping[str, str]) -> Place:
    """The place that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE give this process; alone without them.

    Raises:
        ConfigError: They are no place, or do not say where the first rank is (MASTER_ADDR, MASTER_PORT).
    """
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return ALONE
    world_size = _number(environ, "WORLD_SIZE", 1, 1 << 20)
    rank = _number(environ, "RANK", 0, world_size)
    if world_size > 1:
        _master(environ, "MASTER_ADDR", "MASTER_PORT")
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environ, "LOCAL_RANK", 0, world_size, "0"),
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE", 1, world_size + 1, "1"),
    )


def crew_of(processes: str | None, environ: Mapping[str, str]) -> Crew | None:
    """Whom `--processes` and PET_* ask this process to start; None when it is to train itself.

    PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT are what Kubeflow Trainer sets
    and torchrun reads. The flag counts before PET_NPROC_PER_NODE, and the index of an Indexed Job's pod is its rank
    where PET_NODE_RANK does not give one.

    Raises:
        ConfigError: One of them is no number, or there are several machines and none is named as the first.
    """
    if ELASTIC in environ:
        return None
    asked = processes or environ.get("PET_NPROC_PER_NODE", "1")
    count: Processes = "gpu" if asked in ("gpu", "auto") else _number({"--processes": asked}, "--processes", 1, 4096)
    nodes = _number(environ, "PET_NNODES", 1, 1 << 16, "1")
    if nodes == 1:
        return None if count == 1 else Crew(processes=count)
    index = environ.get("JOB_COMPLETION_INDEX", "")
    rank = _number(environ, "PET_NODE_RANK", 0, nodes, index)
    names = ("PET_MASTER_ADDR", "PET_MASTER_PORT") if "PET_MASTER_ADDR" in environ else ("MASTER_ADDR", "MASTER_PORT")
    return Crew(processes=count, nodes=nodes, node_rank=rank, master=_master(environ, *names))


def _master(environ: Mapping[str, str], address: str, port: str) -> str:
    if not environ.get(address):
        raise ConfigError(f"several processes need {address}: the host on which the first of them runs")
    return f"{environ[address]}:{_number(environ, port, 1, _PORTS)}"


def _number(environ: Mapping[str, str], name: str, least: int, below: int, default: str = "") -> int:
    text = environ.get(name, default)
    if not (text.isascii() and text.isdecimal() and least <= int(text) < below):
        raise ConfigError(f"{name}={text!r} must be a number from {least} to {below - 1}")
    return int(text)
