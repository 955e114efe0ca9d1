"""The processes that train a run together, as each of them sees the others; alone, a process agrees with itself.

Everything that has to be the same on all ranks goes through here. Torch is needed only where there are several.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from job.infra.place import Place

T = TypeVar("T")


class Vote(Protocol):
    """A question to all ranks that is under way."""

    def any(self) -> bool:
        """Whether one of them said yes."""


class Ranks(Protocol):
    """What a process may ask of those it trains with. Each call but `confer` is made by all of them in one order."""

    @property
    def place(self) -> Place:
        """Which of them this process is."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that speaks, decides and writes records."""

    def led(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone does it: a JSON value."""

    def gather(self, value: T) -> list[T]:
        """The JSON value of each rank, in their order."""

    def total(self, number: float) -> float:
        """The sum over all ranks."""

    def vote(self, flag: bool) -> Vote:
        """Ask without waiting for the answer."""

    def confer(self, topic: str, give: Callable[[], Any], unite: Callable[[list[Any]], T]) -> T:
        """What rank 0 makes of what each rank gives: JSON values. Through a store, so any one thread may.

        Args:
            topic: Never used before.

        Raises:
            Exception: What `give` raised on any rank, or `unite`, on all of them.
        """

    def explaining(self) -> AbstractContextManager[None]:
        """A block in which a collective that fails because another rank has ended raises what that has ended with."""


class Alone:
    """A process that trains by itself."""

    place = Place()
    leads = True

    def led(self, work: Callable[[], T]) -> T:
        return work()

    def gather(self, value: T) -> list[T]:
        return [value]

    def total(self, number: float) -> float:
        return number

    def vote(self, flag: bool) -> Vote:
        return _Answered(flag)

    def confer(self, topic: str, give: Callable[[], Any], unite: Callable[[list[Any]], T]) -> T:
        return unite([give()])

    def explaining(self) -> AbstractContextManager[None]:
        return nullcontext()


ALONE = Alone()


class _Answered:
    def __init__(self, answer: bool) -> None:
        self._answer = answer

    def any(self) -> bool:
        return self._answer
