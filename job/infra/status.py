"""How far the run is, in one place that every ending reads: summary, termination message, log line."""

from dataclasses import asdict, dataclass
from typing import Any

_FOR_PEOPLE = ("saved_step", "report", "prompt", "longer")


@dataclass(kw_only=True, slots=True)
class RunStatus:
    """What `train` prints when it ends; kept up to date so that even a sudden end can say it.

    Args:
        status: complete, already complete, interrupted, or failed while nothing better is known.
        tokens: Trained on so far.
        train_loss: Nats per token, of the last evaluation.
        val_loss: Nats per token, of the last evaluation.
        seconds: Spent in training steps, over all attempts.
        checkpoint: Where the last committed checkpoint's files are.
        chain: The chain of steps of that checkpoint, in hex.
        saved_step: Step of that checkpoint.
        report: Where the run's page is, once it is drawn.
        prompt: What the run's samples go on from; empty while unknown.
        longer: Settings with which the same run would train twice as long.
    """

    status: str = "failed"
    step: int = 0
    tokens: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    seconds: float = 0.0
    run_uri: str = ""
    checkpoint: str | None = None
    chain: str | None = None
    saved_step: int | None = None
    report: str | None = None
    prompt: str = ""
    longer: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON values: what `train` prints."""
        values = {**asdict(self), "seconds": round(self.seconds, 3)}
        return {name: value for name, value in values.items() if name not in _FOR_PEOPLE}

    def standing(self) -> str:
        """What a restart would continue from, in words."""
        if self.saved_step is None:
            return f"nothing was saved, {self.step} steps are to be redone"
        return f"step {self.saved_step} is saved, {max(0, self.step - self.saved_step)} steps are to be redone"
