"""The `bench` command: each figure in a process of its own, one after the other, so that none disturbs another."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from job.bench.surroundings import measure_checkpoint, measure_data, measure_generation
from job.bench.training import measure_training
from job.config import Config
from job.errors import JobError
from job.infra.logs import configure_logging

PARTS: Mapping[str, Callable[[Config, float], dict[str, Any]]] = {
    "training": measure_training,
    "data": measure_data,
    "checkpoint": measure_checkpoint,
    "generation": measure_generation,
}
_PATIENCE = 0.2  # seconds between two looks whether to stop


def bench(
    points: Sequence[tuple[Mapping[str, str], Config]],
    parts: Sequence[str],
    seconds: float,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Figures of each part: training of every point of the grid, the rest of the first one.

    Args:
        points: What is set beyond the preset, and the config that it makes.
        parts: Of `PARTS`.
        seconds: To measure each training for.
        advance: Called again and again; may raise to stop.
    """
    found: dict[str, Any] = {}
    for part in parts:
        if part == "training":
            found[part] = [
                {"settings": dict(settings), **_apart(part, config, seconds, advance)} for settings, config in points
            ]
        else:
            found[part] = _apart(part, points[0][1], seconds, advance)
    return found


def _apart(part: str, config: Config, seconds: float, advance: Callable[[], None]) -> dict[str, Any]:
    """The figures of one part from a fresh process, or why there are none."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, part, config, seconds))
    process.start()
    theirs.close()
    try:
        while not ours.poll(_PATIENCE):
            advance()
        answer: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        answer = {"error": f"the process ended with {process.exitcode}" + _guess(process.exitcode)}
    finally:
        process.terminate()
        process.join()
        ours.close()
    return answer


def _guess(code: int | None) -> str:
    return ": killed, most often for want of memory" if code == -signal.SIGKILL else ""


def _measure(answers: Connection, part: str, config: Config, seconds: float) -> None:
    """In the process: measure, and say what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it stops it
    configure_logging(level="warning")
    try:
        answers.send(PARTS[part](config, seconds))
    except JobError as error:
        answers.send({"error": f"{type(error).__name__}: {error}"})
    except (MemoryError, RuntimeError) as error:  # torch's too is a RuntimeError
        answers.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
