"""How far the run is, in one place that every ending reads: summary, termination message, log line."""

from dataclasses import asdict, dataclass
from typing import Any


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

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}
