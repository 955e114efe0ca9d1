"""Event logs as the job writes them, made step by step."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from job.report.published import PUBLISHED

TOKENS = 512  # of a step
EPOCH = 4608
VERDICT = {
    "config": {
        "model": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 256},
        "data": {"tokenizer": "gpt2", "stride": 256},
        "training": {"batch_size": 2},
    },
    "corpus": {
        "fingerprint": "f" * 64,
        "files": [{"uri": "builtin:the-verdict", "size": 20479, "sha256": PUBLISHED[0].sha256}],
    },
}  # what a run that does the book's work says of itself


class Log:
    """An event log under way: `now` is the calendar's clock, `uptime` the steady one."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.now, self.uptime, self.attempt = 1_700_000_000.0, 0.0, 0

    def add(self, event: str, step: int, **fields: Any) -> "Log":
        """One event."""
        place = {"attempt": self.attempt, "number": len(self.events), "time": self.now, "uptime": self.uptime}
        self.events.append({"event": event, "step": step, **fields, **place})
        return self

    def wait(self, seconds: float) -> "Log":
        """Time passes."""
        self.now += seconds
        self.uptime += seconds
        return self

    def start(self, step: int = 0, startup: float = 10.0, **facts: Any) -> "Log":
        """An attempt begins to train."""
        self.attempt, self.uptime = self.attempt + 1, 0.0
        self.now += startup
        return self.add("run started", step, end=90, startup={"importing": startup}, **facts)

    def train(
        self, first: int, last: int, loss: Callable[[int], float | None] = lambda s: 10 * math.exp(-s / 30)
    ) -> "Log":
        """Steps of two seconds each, evaluated after each tenth for one second, saved at each thirtieth."""
        for step in range(first, last + 1):
            speed, at = TOKENS / 2, {"tokens": step * TOKENS, "epoch": step * TOKENS / EPOCH}
            rest = {"learning_rate": 4e-4, "gradient_norm": 1 / step, "tokens_per_second": speed, "mfu": None}
            self.wait(2).add("step", step, loss=loss(step), **at, **rest)
            if step % 10 == 0:
                losses = {"train_loss": loss(step), "val_loss": loss(step), "bits_per_byte": 1.0}
                self.wait(1).add("evaluated", step, seconds=1.0, **at, **losses)
            if step % 30 == 0:
                stages = {"snapshot": 0.1, "serialize": 0.2, "upload": 0.5, "verify": 0.1, "commit": 0.1, "total": 1.0}
                self.add("checkpoint saved", step, seq=step, bytes=1000, seconds=stages)
        return self

    def end(self, step: int, code: int = 0, reason: str = "complete") -> "Log":
        """The attempt ends."""
        return self.add("run ended", step, code=code, reason=reason)

    def __bytes__(self) -> bytes:
        return b"".join(self.lines())

    def lines(self) -> Iterator[bytes]:
        """One for each event."""
        return (json.dumps(event).encode() + b"\n" for event in self.events)


def whole() -> Log:
    """A run of 90 steps that nothing disturbed."""
    log = Log().start().train(1, 90)
    return log.add("sampled", 90, prompt="Every effort", text=" moves <b>you</b>").end(90)
