"""A run trained by several processes: each a `gpt-job train` that is told which rank it is, as a cluster tells it."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Timer

from tests.chaos.commands import _command
from tests.chaos.harness import Plan, ended, launch
from tests.chaos.outcome import Outcome, outcome
from tests.integration.command import Ending, World, assignments
from tests.ports import free_ports


def train(
    world: World,
    plans: Sequence[Plan],
    *settings: str,
    patience: float | None = None,
    before: Mapping[int, Callable[[], None]] | None = None,
) -> list[Ending]:
    """Run `train` in this world as many times as there are plans, each a rank; how they ended.

    Args:
        patience: Seconds after which those that have not ended by then are killed.
        before: By rank, what is called in its process before the command.
    """
    before = before or {}
    (port,), words = free_ports(1), ["train", "--config", "run.toml", *assignments(*settings)]
    notes = [Path(tempfile.mkdtemp(prefix="ended-", dir=world.folder)) for _ in plans]
    processes = [
        launch(_command, plan, world.folder, note, words, partial(become, rank, len(plans), port, before.get(rank)))
        for rank, (plan, note) in enumerate(zip(plans, notes, strict=True))
    ]
    if patience is not None:
        killer = Timer(patience, lambda: [process.kill() for process in processes])
        killer.daemon = True
        killer.start()
    try:
        codes = [ended(process, plan) for process, plan in zip(processes, plans, strict=True)]
    finally:
        for process in processes:
            process.kill()
    return [ending(code, note) for code, note in zip(codes, notes, strict=True)]


def become(rank: int, world_size: int, port: int, before: Callable[[], None] | None = None) -> None:
    """Be this rank of so many."""
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if before:
        before()


def ending(code: int, notes: Path) -> Ending:
    """How a process ended that left its notes there."""
    termination = notes / "termination"
    said = json.loads(termination.read_bytes()) if termination.exists() else {}
    return Ending(code, (notes / "stdout").read_text(), (notes / "stderr").read_text(), said)


def codes(endings: Sequence[Ending]) -> list[int]:
    """How each rank ended."""
    return [ending.code for ending in endings]


def came_to(world: World) -> Outcome:
    """The outcome of the world's run."""
    return outcome(f"{world.run}", world.folder / "files")


def losses(world: World) -> dict[int, float]:
    """Loss of each step."""
    return {event["step"]: event["loss"] for event in world.history() if event["event"] == "step"}
