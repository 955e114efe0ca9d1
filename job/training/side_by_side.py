"""Rungs trained in processes beside each other: a small model keeps one core busy and gains nothing from a second."""

import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from job.errors import JobError
from job.infra.logs import configure_logging
from job.infra.spawning import no_main_module
from job.training.rungs import Climb, Reached, climb

_LOOK = 0.2  # seconds
_JOIN = 5.0  # seconds


class _Gone(Exception):
    """Nobody waits for this process any more."""


def climb_all(tasks: Sequence[Climb], processes: int, advance: Callable[[], None]) -> Iterator[Reached]:
    """Every task's outcome, as soon as it is known.

    Args:
        tasks: The longest first, so that all processes end at about the same time.
        processes: 1 trains in this one.
        advance: Called now and then; may raise to stop, and then nothing is left running.

    Raises:
        JobError: What a task raised, or a process died.
    """
    if processes == 1:
        yield from (climb(task, advance) for task in tasks)
        return
    waiting = deque(tasks)
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(_Worker())) for _ in range(min(processes, len(tasks)))]
        busy = {worker.connection: worker for worker in workers}
        for worker in workers:
            worker.give(waiting.popleft())
        while busy:
            for connection in wait(list(busy), _LOOK):
                assert isinstance(connection, Connection)
                yield busy[connection].take()
                if waiting:
                    busy[connection].give(waiting.popleft())
                else:
                    del busy[connection]
            advance()


class _Worker:
    """A process that trains what it is given, and this end of the pipe to it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_work, args=(other,), daemon=True)
        with no_main_module():
            self._process.start()
        other.close()

    def give(self, task: Climb) -> None:
        with suppress(OSError):  # it has died: whoever takes its answer is told
            self.connection.send(task)

    def take(self) -> Reached:
        """The answer. JobError as the task raised it, or when the process died."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(_JOIN)
            raise JobError(
                f"a process that trained a rung died (exit code {self._process.exitcode}). Most often memory ran out: "
                "ask for fewer with --processes"
            ) from error
        if isinstance(answer, Reached):
            return answer
        if isinstance(answer, JobError | MemoryError):
            raise answer
        raise RuntimeError(answer)

    def close(self) -> None:
        """End the process; it leaves as soon as it notices that nobody talks to it."""
        self.connection.close()
        self._process.join(_JOIN)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection) -> None:
    """A worker's life: until the other end is closed, or has died."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # for the process that started this one to answer
        signal.signal(signum, signal.SIG_IGN)
    configure_logging("json", "error")
    with suppress(EOFError, OSError, _Gone):
        while True:
            task = connection.recv()
            try:
                answer: object = climb(task, _Watch(connection).look)
            except (JobError, MemoryError) as error:
                answer = error
            except _Gone:
                raise
            except Exception:
                answer = traceback.format_exc()
            connection.send(answer)


class _Watch:
    """Asks now and then whether anybody still waits."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._next = connection, time.monotonic() + _LOOK

    def look(self) -> None:
        """Raise _Gone when the other end is closed: it sends nothing while this process works."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK
            if self._connection.poll():
                raise _Gone
