"""Learning rate as a pure function of the step."""

import math

from job.config import OptimizerConfig


def learning_rate(step: int, total_steps: int | None, config: OptimizerConfig) -> float:
    """The learning rate of the update that follows `step` updates.

    Linear warmup to the peak, then the schedule: constant; half a cosine to the minimum (Loshchilov and Hutter 2017,
    section 3); a line to the minimum; or wsd: the peak, and a line to the minimum over the last `cooldown` share.
    """
    if step < config.warmup_steps:
        rise = config.learning_rate - config.initial_learning_rate
        return config.initial_learning_rate + rise * (step + 1) / config.warmup_steps
    if config.schedule == "constant" or total_steps is None:
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return config.min_learning_rate + _left(progress, config) * (config.learning_rate - config.min_learning_rate)


def _left(progress: float, config: OptimizerConfig) -> float:
    """Share of the way from the minimum to the peak, 1 at `progress` 0."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return 1 - progress
    return min(1.0, (1 - progress) / config.cooldown)
