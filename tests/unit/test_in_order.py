"""Parts of a work, several at once: their order, and what becomes of a failure."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from job.errors import DataError
from job.infra.in_order import in_order


def test_results_keep_the_order_of_the_parts():
    """Parts that take longer than later ones still come first."""

    def work(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number

    assert list(in_order(work, range(20), threads=4, ahead=5)) == list(range(20))


def test_no_more_than_so_many_are_ahead():
    """Parts are read only as far as they may be under way."""
    read = []

    def parts():
        for number in range(100):
            read.append(number)
            yield number

    results = in_order(lambda number: number, parts(), threads=2, ahead=3)
    next(results)
    results.close()

    assert read == [0, 1, 2, 3]


def test_the_reason_of_a_failure_is_told_by_whoever_comes_first(monkeypatch):
    """A part whose thread begins only after a later one has failed raises what that one did."""
    failed = threading.Event()

    class Late(ThreadPoolExecutor):
        """Threads of which the first is slow to begin."""

        def submit(self, work, part):
            future = super().submit(lambda: (part or failed.wait(10), work(part))[1])
            if part:
                future.add_done_callback(lambda _: failed.set())
            return future

    def work(number):
        raise DataError(f"part {number}")

    monkeypatch.setattr("job.infra.in_order.ThreadPoolExecutor", Late)
    with pytest.raises(DataError, match="part 1"):
        list(in_order(work, range(2), threads=2, ahead=2))


def test_after_a_failure_nothing_is_begun():
    """Of many parts behind one that fails none is worked on."""
    begun = []

    def work(number):
        begun.append(number)
        raise DataError(f"part {number}")

    with pytest.raises(DataError, match="part 0"):
        list(in_order(work, range(100), threads=1, ahead=100))

    assert begun == [0]
