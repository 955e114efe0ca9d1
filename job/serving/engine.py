"""The one thread that owns the model: requests come over a queue, join the batch, and leave when they end."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread

import structlog
import torch

from job.data.tokenizer import Tokenizer
from job.infra.health import Pulse
from job.model.batching import Batch, Continuation, Update
from job.serving.answer import Answer, Piece
from job.serving.metrics import ServingMetrics, State
from job.serving.refusal import unavailable

Deliver = Callable[[Sequence[Piece] | None], None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the engine's thread works with."""

    batch: Batch
    tokenizer: Tokenizer
    device: torch.device

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.batch.context_length


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that the engine has taken.

    Args:
        deliver: Called in the engine's thread with what a step has added; with None when the engine has failed.
    """

    answers: Sequence[Answer]
    deliver: Deliver
    open: set[Answer] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.open.update(self.answers)


class Engine:
    """Computes answers side by side, first come, first served.

    Args:
        load: Makes the model, in the engine's own thread.
        slots, queue: Continuations that are computed, and that may wait.
        pulse: Beats at each step.
    """

    def __init__(
        self, load: Callable[[], ServedModel], slots: int, queue: int, metrics: ServingMetrics, pulse: Pulse
    ) -> None:
        self.model: ServedModel | None = None
        self.error: BaseException | None = None
        self.on_change: Callable[[], None] = lambda: None  # ready, or failed; called in the engine's thread
        self._load, self._room, self._metrics, self._pulse = load, slots + queue, metrics, pulse
        self._changed = Condition()
        self._waiting: deque[Answer] = deque()
        self._tickets: dict[Continuation, tuple[Ticket, Answer]] = {}  # of all that wait or are computed
        self._cancelled: list[Ticket] = []
        self._state: State = "loading"
        self._closing = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        metrics.slots.set(slots)

    @property
    def state(self) -> State:
        """What the engine is doing."""
        return self._state

    @property
    def outstanding(self) -> int:
        """Continuations that wait or are computed."""
        return len(self._tickets)

    @property
    def closing(self) -> bool:
        """Whether the engine is asked to end."""
        return self._closing

    def start(self) -> None:
        """Load the model, and then compute what comes."""
        self._thread.start()

    def require_room(self, count: int = 1) -> ServedModel:
        """The model. Raises Refusal (503) when it is not ready, or `count` continuations more are too many."""
        if self._state == "failed":
            raise unavailable("the server has failed and is ending", "failed", 30)
        if self._state == "draining":
            raise unavailable("the server is ending; it answers what it has begun", "draining", 5)
        if self.model is None:
            raise unavailable("the model is still being loaded", "loading", 5)
        if len(self._tickets) + count > self._room:
            message = f"{len(self._tickets)} continuations are under way, and there is room for {self._room}"
            raise unavailable(f"{message}; ask again", "busy", 1)
        return self.model

    def submit(self, answers: Sequence[Answer], deliver: Deliver) -> Ticket:
        """Take a request. Raises Refusal when there is no room for all of it."""
        ticket = Ticket(answers, deliver)
        with self._changed:
            self.require_room(len(answers))
            self._tickets.update({answer.continuation: (ticket, answer) for answer in answers})
            self._waiting.extend(answers)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free what a request holds, before the next step; nothing happens when it has ended."""
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify()

    def drain(self) -> None:
        """Take no more requests."""
        with self._changed:
            if self._state != "failed":
                self._become("draining")

    def close(self, seconds: float) -> None:
        """End the thread, whatever is under way; wait for that up to `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.model = self._load()
            with self._changed:
                if self._state == "loading":
                    self._become("ready")
            self.on_change()
            while self._take_in(self.model.batch):
                self._step(self.model.batch)
        except BaseException as error:  # whoever waits must hear of it, whatever it is
            self._fail(error)

    def _take_in(self, batch: Batch) -> bool:
        """Wait for work, drop what was cancelled, fill free rows; False when the engine is to end."""
        with self._changed:
            self._drop_cancelled(batch)
            while not (self._closing or self._tickets):
                self._metrics.under_way(0, 0, 0)
                self._pulse.beat()
                self._changed.wait()
                self._drop_cancelled(batch)
            while self._waiting and len(batch) < batch.rows:
                batch.join(self._waiting.popleft().continuation)
            self._metrics.under_way(len(self._waiting), batch.reading, len(batch) - batch.reading)
            return not self._closing

    def _drop_cancelled(self, batch: Batch) -> None:
        for ticket in self._cancelled:
            for answer in ticket.open:
                self._tickets.pop(answer.continuation, None)
                batch.leave(answer.continuation)
                with suppress(ValueError):
                    self._waiting.remove(answer)
            ticket.open.clear()
        self._cancelled.clear()

    def _step(self, batch: Batch) -> None:
        started = time.perf_counter()
        news: dict[Ticket, list[Piece]] = {}
        for update in batch.step():
            ticket, answer = self._tickets[update.who]
            piece = answer.take(update)
            if piece.finish_reason:
                self._end(batch, ticket, answer, update)
            news.setdefault(ticket, []).append(piece)
        self._pulse.beat()
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        for ticket, pieces in news.items():
            ticket.deliver(pieces)

    def _end(self, batch: Batch, ticket: Ticket, answer: Answer, update: Update) -> None:
        if not update.finish_reason:
            batch.leave(update.who)  # a stop string, of which the batch knows nothing
        with self._changed:
            self._tickets.pop(answer.continuation, None)
            ticket.open.discard(answer)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.error = error
            self._become("failed")
            tickets = {ticket for ticket, _ in self._tickets.values()}
            self._tickets.clear()
            self._waiting.clear()
        for ticket in tickets:
            ticket.deliver(None)
        self.on_change()

    def _become(self, state: State) -> None:
        self._state = state
        self._metrics.now(state)
