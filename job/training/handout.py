"""What rank 0 reads of a checkpoint, given to every rank: one tensor at a time, each to where it belongs."""

from dataclasses import dataclass

from job.training.learner import Learner
from job.training.tensors import Read, StoredTensors, fill_model, fill_optimizer


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's files, of which it is known that they fit."""

    model: StoredTensors
    optimizer: StoredTensors
    state: str


def hand_out(learner: Learner, found: Found | None) -> str:
    """Put a checkpoint's tensors into the learner of every rank; returns the state that is stored with them.

    Args:
        found: On rank 0; None on the others.
    """
    ranks, place = learner.parallel.ranks, learner.parallel.place
    said = ranks.led(lambda: [found.state, sorted(found.optimizer.names)] if found else [])
    fill_model(learner.model, _reader(found.model if found else None), place)
    fill_optimizer(said[1], learner.model, learner.optimizer, _reader(found.optimizer if found else None), place)
    return str(said[0])


def hand_out_model(learner: Learner, model: StoredTensors | None) -> None:
    """Put a checkpoint's parameters into the learner of every rank."""
    fill_model(learner.model, _reader(model), learner.parallel.place)


def _reader(stored: StoredTensors | None) -> Read:
    return stored.read if stored else lambda name: None
