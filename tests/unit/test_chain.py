"""The chain of steps and the ledger that feeds it."""

import math

import pytest
import torch

from job.checkpoint.chain import GENESIS, extend
from job.training.ledger import StepLedger

SAMPLES = bytes(32)


def ledger_after(results, every):
    """The chain after steps with these losses, folded every so many steps."""
    ledger = StepLedger(capacity=8)
    for number, loss in enumerate(results, start=1):
        ledger.add(SAMPLES, torch.tensor(loss), torch.tensor(1.0))
        if number % every == 0:
            ledger.fold()
    ledger.fold()
    return ledger.chain


def test_the_chain_does_not_depend_on_when_it_is_read():
    """Folding after each step and after every fifth gives the same chain."""
    losses = [1 / n for n in range(1, 12)]

    assert len({ledger_after(losses, every) for every in (1, 2, 5, 7)}) == 1


@pytest.mark.parametrize(
    "other",
    [
        extend(GENESIS, 2, SAMPLES, 1.0, 1.0),
        extend(GENESIS, 1, bytes([1]) + SAMPLES[1:], 1.0, 1.0),
        extend(GENESIS, 1, SAMPLES, 1.0 + 2**-23, 1.0),
        extend(GENESIS, 1, SAMPLES, 1.0, 1.0 + 2**-23),
        extend("1" * 64, 1, SAMPLES, 1.0, 1.0),
    ],
)
def test_every_part_counts(other):
    """Another step, data, loss bit, norm bit or past gives another chain."""
    assert other != extend(GENESIS, 1, SAMPLES, 1.0, 1.0)


def test_losses_that_are_no_numbers_are_equal():
    """NaNs of different bits give one chain."""
    one, other = float("nan"), -float("nan")

    assert extend(GENESIS, 1, SAMPLES, one, 1.0) == extend(GENESIS, 1, SAMPLES, other, 1.0)


def test_a_step_that_is_not_finite_is_told():
    """The ledger says which steps had no update."""
    ledger = StepLedger(capacity=4)
    for loss, norm in [(1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]:
        ledger.add(SAMPLES, torch.tensor(loss), torch.tensor(norm))

    assert [result.finite for result in ledger.fold()] == [True, False, False]
