"""Beam search against enumeration and against small scripts."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import ConfigError
from job.model.beams import beam_search
from job.model.generation import generate
from job.model.rows import PlainRows
from tests.table_model import PROMPT, Table, V, scripted


def log_probability(model: Table, continuation: tuple[int, ...]) -> float:
    """Of the continuation of PROMPT, one token after the other."""
    tokens, total = list(PROMPT), 0.0
    for token in continuation:
        total += float(model.next_logits(torch.tensor([tokens])).log_softmax(-1)[0, token])
        tokens.append(token)
    return total


@settings(deadline=None)
@given(seed=st.integers(0, 999), stop=st.none() | st.integers(0, V - 1))
def test_one_beam_is_greedy(seed, stop):
    """Beam search with one beam finds the greedy continuation, stop token or not."""
    found = beam_search(PlainRows(Table(seed)), PROMPT, 6, beams=1, stop_token=stop)

    assert found == list(generate(PlainRows(Table(seed)), PROMPT, 6, stop_token=stop))


@settings(deadline=None)
@given(seed=st.integers(0, 999), length_penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]))
def test_many_beams_are_exhaustive(seed, length_penalty):
    """With a beam for every prefix, the continuation of the best score of all is found."""
    model, stop, most = Table(seed), 0, 4
    lengths = (
        continuation
        for length in range(1, most + 1)
        for continuation in product(range(V), repeat=length)
        if stop not in continuation[:-1] and (length == most or continuation[-1] == stop)
    )
    best = max(lengths, key=lambda tokens: log_probability(model, tokens) / len(tokens) ** length_penalty)

    assert beam_search(PlainRows(model), PROMPT, most, V**most, length_penalty, stop) == [
        token for token in best if token != stop
    ]


def test_beam_search_looks_ahead():
    """Two beams find a continuation that greedy decoding misses."""
    model = scripted({2: [0.6, 0.4, 0, 0, 0]}, {0: [0.3, 0.2, 0.2, 0.2, 0.1], 1: [0, 0, 0, 0, 1]})

    assert list(generate(PlainRows(model), PROMPT, 2)) == [0, 0]
    assert beam_search(PlainRows(model), PROMPT, 2, beams=2) == [1, 4]


def test_a_stop_costs_no_beam():
    """A continuation that ends leaves its place to the next best open one."""
    model = scripted({2: [0.5, 0.3, 0.2, 0, 0]}, {2: [0, 0, 0, 0.9, 0.1]})

    assert beam_search(PlainRows(model), PROMPT, 2, beams=2, length_penalty=2.0, stop_token=0) == [2, 3]


def test_a_stop_below_the_beams():
    """A stop token that `beams` other steps outrank ends nothing."""
    model = scripted({2: [0.4, 0.6, 0, 0, 0]}, {1: [0, 0.4, 0.2, 0.2, 0.2]})

    assert beam_search(PlainRows(model), PROMPT, 2, beams=1, length_penalty=0.0, stop_token=0) == [1, 1]


def test_search_goes_on():
    """While the best open continuation scores above an ended one, the search goes on."""
    model = scripted({2: [0.3, 0.6, 0.1, 0, 0]}, {1: [0.2, 0, 0, 0.8, 0]}, {3: [0, 0, 0, 0.1, 0.9]})

    assert beam_search(PlainRows(model), PROMPT, 3, beams=2, stop_token=0) == [1, 3, 4]


def test_the_best_ends_are_kept():
    """A continuation that ends later with a better score takes the place of a worse one."""
    model = scripted({2: [0.3, 0.6, 0.1, 0, 0]}, {1: [0.2, 0, 0, 0.8, 0]}, {3: [0.7, 0, 0, 0, 0.3]})

    assert beam_search(PlainRows(model), PROMPT, 3, beams=2, stop_token=0) == [1, 3]


def test_nothing_but_a_stop():
    """Where every step is the stop token, the search ends with nothing."""
    model = Table()
    model.logits = torch.zeros(8, V, 1)

    assert beam_search(PlainRows(model), PROMPT, 3, beams=1, stop_token=0) == []


def test_search_ends():
    """Once `beams` continuations have ended and no open one scores above them, the model is asked no more."""
    model = scripted({2: [0.9, 0.1, 0, 0, 0]})

    assert beam_search(PlainRows(model), PROMPT, 5, beams=1, stop_token=0) == []
    assert len(model.seen) == 1


def test_beam_search_slides():
    """Past the context, every beam is continued from its own end."""
    model = Table(context_length=2)
    beam_search(PlainRows(model), [0, 1, 2], 3, beams=2)

    assert [len(tokens) for tokens in model.seen] == [1, 2, 2]
    assert all(len(sequence) == 2 for tokens in model.seen for sequence in tokens)


def test_refused_beams():
    """A search needs a beam."""
    with pytest.raises(ConfigError, match="beams=0 must be at least 1"):
        beam_search(PlainRows(Table()), PROMPT, 3, beams=0)
