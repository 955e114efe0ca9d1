"""Cases by number: all chance comes from CHAOS_SEED, CHAOS_SCALE makes more of them, CHAOS_CASE plays one again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.chaos import evidence

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = float(os.environ.get("CHAOS_SCALE", "1"))
ONLY = os.environ.get("CHAOS_CASE")


def numbers(count: int) -> range:
    """The numbers of `count` cases, or the one that is asked for."""
    return range(int(ONLY), int(ONLY) + 1) if ONLY else range(count)


def cases(count: int) -> Iterator[tuple[int, Random]]:
    """Number and chance of each of `count` cases."""
    for number in numbers(count):
        yield number, Random(f"{SEED}/{number}")
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].partition(" ")[0]
    evidence.add("random cases", test, len(numbers(count)))


@contextmanager
def replayable(number: int) -> Iterator[None]:
    """What goes wrong inside says how to see it again."""
    try:
        yield
    except BaseException as error:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        error.add_note(f'replay: CHAOS_SEED={SEED} CHAOS_CASE={number} python -m pytest "{test}" -m "slow or not slow"')
        raise
