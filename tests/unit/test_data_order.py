"""The order in which data is read: a pure function, a permutation, and fair."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.data.order import DataOffset, Order, passed_over, sample_numbers
from job.data.permutation import key, permuted
from job.errors import DataError

SECRET = key(1337, "test")


def permutation(size, epoch=0, secret=SECRET):
    return permuted(np.arange(size), np.full(size, epoch), size, secret)


@pytest.mark.parametrize("sizes", [range(1, 301), [65_537, 99_991, 131_071, 131_072, 131_073]])
def test_every_place_is_taken_once(sizes):
    """Whatever the size, a permutation reaches each place exactly once."""
    for size in sizes:
        assert np.array_equal(np.sort(permutation(size)), np.arange(size)), size


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 20), st.integers(0, 1 << 62))
def test_huge_permutations_need_no_memory(size, epoch, place):
    """One element of a permutation of a trillion is computed alone and lies inside."""
    (found,) = permuted(np.array([place % size]), np.array([epoch]), size, SECRET)

    assert 0 <= found < size


def test_an_element_does_not_depend_on_its_neighbours():
    """Elements asked for together are those asked for one by one."""
    alone = [permuted(np.array([place]), np.array([3]), 1000, SECRET)[0] for place in range(1000)]

    assert alone == permutation(1000, epoch=3).tolist()


def test_epochs_and_seeds_differ():
    """Each epoch and each seed has a permutation of its own."""
    found = [permutation(1000, epoch) for epoch in range(20)]
    found += [permutation(1000, 0, key(seed, "test")) for seed in range(20)]

    assert len({tuple(order) for order in found}) == 40
    for one, other in itertools.combinations(found, 2):
        assert np.mean(one == other) < 0.02


def chi_square(counts, cells):
    """Distance from a uniform distribution; about `cells` when it is one, with a deviation of sqrt(2 * cells)."""
    observed = np.array([counts.get(cell, 0) for cell in cells])
    expected = observed.sum() / len(cells)
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("size", [2, 3, 5, 7, 18, 33, 100])
@pytest.mark.parametrize("place", ["first", "last"])
def test_no_window_is_preferred(size, place):
    """Over many epochs every window comes first, and last, equally often."""
    epochs = np.arange(200 * size)
    places = np.full(len(epochs), 0 if place == "first" else size - 1)
    counts = Counter(permuted(places, epochs, size, SECRET).tolist())

    assert chi_square(counts, range(size)) < size + 5 * np.sqrt(2 * size)


@pytest.mark.parametrize("size", [3, 4])
def test_every_permutation_occurs(size):
    """All permutations of a few windows occur, none much more often than another."""
    counts = Counter(tuple(permutation(size, epoch).tolist()) for epoch in range(6000))
    cells = list(itertools.permutations(range(size)))

    assert chi_square(counts, cells) < len(cells) + 6 * np.sqrt(2 * len(cells))


def test_neighbours_are_not_kept():
    """Windows that lie side by side are not read side by side more often than by chance."""
    order = permutation(10_000)

    assert np.mean(np.abs(np.diff(order)) == 1) < 0.002
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.03


@given(st.integers(0, 3000), st.integers(1, 300), st.integers(1, 400))
def test_windows_are_the_tutorials(tokens, context_length, stride):
    """There are as many windows as the tutorial's loop makes, and the tail that none reaches is known."""
    order = Order("windows", tokens, context_length, stride, seed=1)
    begins = list(range(0, tokens - context_length, stride))
    reached = begins[-1] + context_length + 1 if begins else 0

    assert order.windows == len(begins)
    assert order.dropped_tail == tokens - reached


@pytest.mark.parametrize("stride", [1, 7, 8, 11])
def test_an_epoch_reads_every_window_once(stride):
    """In one epoch each window is read exactly once, in the next again, in another order."""
    order = Order("windows", 500, 8, stride, seed=1)
    first, second = (order.starts(np.arange(order.windows) + epoch * order.windows) for epoch in (0, 1))

    assert sorted(first) == sorted(second) == list(range(0, 500 - 8, stride))
    assert first.tolist() != second.tolist()


def test_batches_run_across_epochs():
    """A batch at the end of an epoch is filled from the next one."""
    order = Order("windows", 18 * 256 + 1, 256, 256, seed=1)
    assert order.windows == 18
    batches = [order.starts(sample_numbers(range(step, step + 1), 4).ravel()) for step in range(9)]

    assert sorted(np.concatenate(batches).tolist()) == sorted([*range(0, 18 * 256, 256)] * 2)
    assert [len(batch) for batch in batches] == [4] * 9


def test_sample_numbers():
    """Step s of batches of b holds the samples from s * b on."""
    assert sample_numbers(range(3, 5), 4).tolist() == [[12, 13, 14, 15], [16, 17, 18, 19]]
    assert sample_numbers(range(1 << 40, (1 << 40) + 1), 2).tolist() == [[1 << 41, (1 << 41) + 1]]


def test_an_offset_counts_from_its_step_on():
    """Steps before it hold what they held; from it on every sample is so many further, and offsets add up."""
    offsets = [DataOffset(step=2, samples=10), DataOffset(step=3, samples=100)]

    assert sample_numbers(range(1, 4), 2, offsets).tolist() == [[2, 3], [14, 15], [116, 117]]
    assert [passed_over(step, offsets) for step in range(4)] == [0, 0, 10, 110]


@pytest.mark.parametrize("kind", ["windows", "random"])
def test_the_batch_size_does_not_change_the_order(kind):
    """The sequence of windows is the same in batches of 3 and of 4."""
    order = Order(kind, 1000, 10, 10, seed=1)
    threes = np.concatenate([order.starts(sample_numbers(range(step, step + 1), 3).ravel()) for step in range(40)])
    fours = np.concatenate([order.starts(sample_numbers(range(step, step + 1), 4).ravel()) for step in range(30)])

    assert threes.tolist() == fours.tolist()


@pytest.mark.parametrize("kind", ["windows", "random"])
def test_evaluation_has_an_order_of_its_own(kind):
    """Evaluation reads in another order than training under the same seed, the same each time."""
    training = Order(kind, 5000, 10, 10, seed=1)
    evaluation = Order(kind, 5000, 10, 10, seed=1, purpose="evaluation")
    samples = np.arange(100)

    assert evaluation.starts(samples).tolist() != training.starts(samples).tolist()
    assert evaluation.starts(samples).tolist() == evaluation.starts(samples).tolist()


def test_random_blocks_are_uniform():
    """`random` draws every start from 0 to N - T - 1, each equally often."""
    order = Order("random", 60, 10, 10, seed=1)
    counts = Counter(order.starts(np.arange(50_000)).tolist())

    assert set(counts) == set(range(50))
    assert chi_square(counts, range(50)) < 50 + 5 * 10
    assert order.dropped_tail == 0


def test_orders_never_change():
    """The order of a seed is part of a run's identity: these numbers hold for good."""
    samples = np.arange(6)

    assert Order("windows", 1001, 10, 10, seed=123).starts(samples).tolist() == [740, 370, 580, 550, 300, 800]
    assert Order("random", 1001, 10, 10, seed=123).starts(samples).tolist() == [683, 886, 735, 100, 416, 851]


def test_no_window_at_all():
    """Asking for windows of a split that holds none is an error."""
    with pytest.raises(DataError, match=r"no window of 10 \+ 1 tokens in a split of 10"):
        Order("windows", 10, 10, 10, seed=1).starts(np.arange(1))
