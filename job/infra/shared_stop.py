"""A request to stop that reaches one rank and stops all of them at the same step."""

from job.errors import Interrupted
from job.infra.ranks import Ranks, Vote
from job.infra.signals import StopSignal


class SharedStop:
    """What all ranks know of a request to stop, as of the last time they agreed.

    The question travels beside the work and is read the next time, so that nobody waits for the answer. A process
    alone always knows.
    """

    def __init__(self, stop: StopSignal, ranks: Ranks) -> None:
        self._stop, self._ranks = stop, ranks
        self._vote: Vote | None = None
        self._agreed = False

    @property
    def reason(self) -> str:
        """What asked to stop, and which rank."""
        return self._stop.reason

    @property
    def requested(self) -> bool:
        """Whether all know that one was asked."""
        return self._agreed if self._ranks.place.world_size > 1 else self._stop.requested

    def check(self) -> None:
        """Raise Interrupted when all know that one was asked."""
        if self.requested:
            raise Interrupted(self.reason)

    def agree(self) -> None:
        """Read the answers to the last question and ask again; all ranks do so at the same places."""
        if self._ranks.place.world_size == 1 or self._agreed:
            return
        if self._vote is not None and self._vote.any():
            reasons, seconds = self._ranks.gather(self._stop.reason), self.remaining()
            rank = next(rank for rank, reason in enumerate(reasons) if reason)
            self._stop.heed(f"{reasons[rank]} by rank {rank}", seconds)
            self._agreed = True
            return
        self._vote = self._ranks.vote(self._stop.requested)

    def remaining(self) -> float:
        """Seconds that all can still work; a question to all of them."""
        return min(self._ranks.gather(min(self._stop.remaining(), 1e9)))
