"""The ladder's table: means and spreads over seeds, and what each rung did to the one before it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

_SNIPPET = 90  # characters of a sample on a terminal


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One rung.

    Args:
        new: What it adds to the rung before it.
        purpose: What that is for.
        train_losses, val_losses: One a seed, nats per token.
        seconds: Of training, one a seed.
        sample: What the model of the first seed wrote.
    """

    name: str
    new: str
    purpose: str
    parameters: int
    steps: int
    device: str
    train_losses: tuple[float, ...]
    val_losses: tuple[float, ...]
    seconds: tuple[float, ...]
    sample: str

    @property
    def train_loss(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.train_losses)

    @property
    def val_loss(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.val_losses)

    @property
    def spread(self) -> float:
        """From the mean of the validation losses to the seed that is farthest from it."""
        return max(abs(loss - self.val_loss) for loss in self.val_losses)

    def plain(self) -> dict[str, Any]:
        """As JSON values, means beside what they are of."""
        return {**asdict(self), "train_loss": self.train_loss, "val_loss": self.val_loss, "val_spread": self.spread}


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All rungs in the order of the road, and what they were trained on."""

    rows: Sequence[Row]
    about: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        happened = self.happened()
        rungs = [{**row.plain(), "happened": said} for row, said in zip(self.rows, happened, strict=True)]
        return {"rungs": rungs, **self.about}

    def happened(self) -> list[str]:
        """What each rung did to the validation loss, in a few words."""
        return ["where the road begins", *(compared(before, row) for before, row in pairwise(self.rows))]

    def lines(self) -> list[str]:
        """The table as a terminal shows it, and below it what the models write."""
        lines = [f"{'rung':<14}{'parameters':>10}  {'train':>6}  {'validation':<13}  {'than before':<15}  new"]
        for row, said in zip(self.rows, ["", *self.happened()[1:]], strict=True):
            losses = f"{row.train_loss:>6.3f}  {f'{row.val_loss:.3f} ± {row.spread:.3f}':<13}"
            lines.append(f"{row.name:<14}{row.parameters:>10,}  {losses}  {said:<15}  {row.new}")
        lines += ["", "what the first seed's model writes"]
        return lines + [f"{row.name:<14}{' '.join(row.sample.split())[:_SNIPPET]}" for row in self.rows]


def compared(before: Row, row: Row) -> str:
    """How the validation loss of `row` lies to that of the rung before it, judged by the spread of their seeds."""
    change = row.val_loss - before.val_loss
    if not abs(change) < float("inf"):
        return "diverged"
    if abs(change) <= before.spread + row.spread:
        return "within spread"
    return f"{'higher' if change > 0 else 'lower'} by {abs(change):.3f}"
