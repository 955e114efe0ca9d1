"""When a run ends and what is due at a step: pure functions of the step."""

import math
from dataclasses import dataclass, field

from job.config import Period, TrainingConfig


def total_steps(training: TrainingConfig, windows: int) -> int | None:
    """Steps of the whole run; None when only time ends it.

    Args:
        training: Its `max_steps` and `epochs`; whichever ends first counts.
        windows: Training windows of one epoch.
    """
    ends = []
    if training.max_steps is not None:
        ends.append(training.max_steps)
    if training.epochs is not None:
        ends.append(max(1, math.ceil(training.epochs * windows / training.batch_size)))
    return min(ends, default=None)


@dataclass(frozen=True, slots=True)
class Timetable:
    """What is due after `step` updates.

    Args:
        training: Periods and offsets.
        windows: Training windows of one epoch.
    """

    training: TrainingConfig
    windows: int
    end: int | None = field(init=False)  # step at which the run is complete

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", total_steps(self.training, self.windows))

    def finished(self, step: int, seconds: float) -> bool:
        """Whether nothing is left to do after `step` steps and `seconds` of training."""
        limit = self.training.max_seconds
        return (self.end is not None and step >= self.end) or (limit is not None and seconds >= limit)

    def epoch(self, step: int) -> float:
        """Epochs read after `step` steps."""
        return step * self.training.batch_size / self.windows

    def evaluates(self, step: int) -> bool:
        """Whether losses are measured: before the first step, each period, and at the end."""
        return step in (0, self.end) or self._due(step, self.training.eval_every, self.training.eval_offset)

    def samples(self, step: int) -> bool:
        """Whether a sample is drawn."""
        every = self.training.sample_every
        return every is not None and step > 0 and (step == self.end or self._due(step, every, 0))

    def _due(self, step: int, every: Period, offset: int) -> bool:
        if every == "epoch":
            return math.floor(self.epoch(step)) > math.floor(self.epoch(step - 1))
        return step >= offset and (step - offset) % every == 0
