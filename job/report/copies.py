"""Work that copies of this process share: each does its part and ends, so that none is left behind by a kill."""

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


def make_all(tasks: Sequence[Callable[[], T]], processes: int) -> list[T]:
    """What the tasks make, in their order.

    Args:
        processes: How many make it, this one among them. More than one only where this one has no threads.

    Raises:
        Exception: What a task raised.
        ChildProcessError: A copy was killed.
    """
    copies = []
    for first in range(1, min(processes, len(tasks))):
        context = get_context("fork")
        reader, writer = context.Pipe(duplex=False)
        context.Process(target=_make, args=(tasks[first::processes], writer), daemon=True).start()
        writer.close()
        copies.append(reader)
    made = {number: tasks[number]() for number in range(0, len(tasks), processes)}
    for first, reader in enumerate(copies, start=1):
        try:
            share = reader.recv()
        except EOFError:
            raise ChildProcessError("a process that drew a part of it has died") from None
        if isinstance(share, Exception):
            raise share
        made |= zip(range(first, len(tasks), processes), share, strict=True)
    return [made[number] for number in range(len(tasks))]


def _make(tasks: Sequence[Callable[[], object]], answer: Connection) -> None:
    try:
        answer.send([task() for task in tasks])
    except Exception as error:
        answer.send(error)
