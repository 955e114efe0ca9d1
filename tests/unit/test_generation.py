"""The next token's probabilities, and decoding by them, against plain oracles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from job.config import ModelConfig
from job.errors import ConfigError
from job.model.beams import beam_search
from job.model.generation import Continuations, generate
from job.model.gpt import GPT
from job.model.rows import PlainRows
from job.model.sampling import Sampling, next_token_probabilities, penalize_repetition
from tests.table_model import PROMPT, Table, V

logit_rows = st.lists(st.floats(-20, 20, width=32), min_size=V, max_size=V)


def rows(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_softmax():
    """Without top-k and top-p, probabilities are the softmax of logits over temperature."""
    logits = torch.randn(3, V)

    torch.testing.assert_close(next_token_probabilities(logits, temperature=0.7), (logits / 0.7).softmax(-1))


def test_temperature_zero():
    """Temperature 0 is certain of the highest logit, the first of equals."""
    assert next_token_probabilities(rows(1, 3, 3), temperature=0).tolist() == [[0, 1, 0]]


def test_tiny_temperature():
    """A temperature near 0 overflows nothing."""
    assert next_token_probabilities(rows(1, 1000, 999), temperature=1e-300).tolist() == [[0, 1, 0]]


def test_top_k():
    """Top-k keeps the k highest logits of each row."""
    kept = next_token_probabilities(torch.tensor([[1.0, 4, 3, 2], [9, 0, 1, 8]]), top_k=2) > 0

    assert kept.tolist() == [[False, True, True, False], [True, False, False, True]]


def test_top_k_keeps_ties():
    """Logits equal to the k-th are all kept."""
    assert (next_token_probabilities(rows(1, 2, 2, 3), top_k=2) > 0).tolist() == [[False, True, True, True]]


def test_top_k_beyond_the_vocabulary():
    """A top-k above V is V."""
    logits = torch.randn(2, V)

    assert torch.equal(next_token_probabilities(logits, top_k=99), next_token_probabilities(logits))


@pytest.mark.parametrize(
    "rule", [{"top_p": 1e-300}, {"temperature": 1e300, "top_k": 2}, {"temperature": 1e-300}], ids=str
)
def test_values_beyond_float32(rule):
    """Values that float32 would make 0 or infinite leave probabilities: the best token's, or equal ones."""
    probabilities = next_token_probabilities(rows(3, 1, 2), **rule)

    assert probabilities.tolist() == [[0.5, 0, 0.5] if "top_k" in rule else [1, 0, 0]]


@settings(deadline=None)
@given(logits=logit_rows, top_p=st.floats(0.01, 1))
def test_top_p(logits, top_p):
    """Top-p keeps the fewest most probable tokens whose mass reaches p, in their proportions."""
    full = next_token_probabilities(rows(*logits)).double()[0]
    kept = next_token_probabilities(rows(*logits), top_p=top_p).double()[0]
    inside = full[kept > 0]

    assert len(inside) > 0
    assert inside.min() >= full[kept == 0].max() if (kept == 0).any() else True
    assert inside.sum() >= top_p - 1e-6
    assert inside.sum() - inside.min() < top_p + 1e-6
    torch.testing.assert_close(kept[kept > 0], inside / inside.sum(), rtol=1e-5, atol=1e-7)


def test_top_p_of_equals():
    """Of equally probable tokens, top-p keeps the first ones."""
    assert next_token_probabilities(rows(0, 0, 0, 0), top_p=0.5).tolist() == [[0.5, 0.5, 0, 0]]


def test_top_p_of_one():
    """Top-p of 1 drops nothing, not even what rounding hides."""
    logits = torch.linspace(-30, 0, 1000)[None]

    assert torch.equal(next_token_probabilities(logits, top_p=1.0), next_token_probabilities(logits))


def test_top_p_comes_after_temperature_and_top_k():
    """Top-p measures mass after top-k and temperature, not before."""
    logits = rows(*torch.tensor([0.4, 0.3, 0.2, 0.1]).log())
    kept = next_token_probabilities(logits, temperature=0.5, top_k=2, top_p=0.6) > 0  # 0.16 and 0.09 of 0.25

    assert kept.tolist() == [[True, False, False, False]]


def test_top_k_comes_before_temperature():
    """A temperature that rounds two logits together does not make them a tie."""
    logits = rows(1, 1 + 1e-6)

    assert next_token_probabilities(logits, temperature=1e6, top_k=1).tolist() == [[0, 1]]


def test_low_precision_logits():
    """Probabilities of bfloat16 logits are float32 and sum to 1."""
    probabilities = next_token_probabilities(torch.randn(1, 1000).bfloat16(), top_p=0.9)

    assert probabilities.dtype == torch.float32
    assert float(probabilities.sum()) == pytest.approx(1)


def test_greedy():
    """Greedy decoding takes the highest logit each time."""
    model, expected = Table(), list(PROMPT)
    for _ in range(6):
        expected.append(int(model.next_logits(torch.tensor([expected])).argmax()))

    assert list(generate(PlainRows(model), PROMPT, 6)) == expected[2:]


def test_sampling_draws_as_the_tutorial_does():
    """Under a seed, top-k and temperature draw the tokens of softmax(logits / temperature) and multinomial."""
    model, expected = Table(), list(PROMPT)
    generator = torch.Generator().manual_seed(123)
    for _ in range(6):
        logits = model.next_logits(torch.tensor([expected]))[0]
        allowed = logits.argsort(descending=True)[:3]
        masked = torch.full((V,), -math.inf)
        masked[allowed] = logits[allowed] / 1.5
        expected.append(int(torch.multinomial(masked.softmax(0), 1, generator=generator)))

    drawing = Sampling(temperature=1.5, top_k=3)
    found = generate(PlainRows(model), PROMPT, 6, drawing, torch.Generator().manual_seed(123))

    assert list(found) == expected[2:]


def test_sampling_repeats():
    """The same generator state gives the same tokens, another state others."""
    drawing = Sampling(temperature=1.0)
    first, again, other = (
        list(generate(PlainRows(Table(context_length=40)), PROMPT, 30, drawing, torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )

    assert first == again != other


def test_streaming():
    """Each token is known before the model is asked for the next one."""
    model = Table()
    tokens = generate(PlainRows(model), PROMPT, 3)
    next(tokens)

    assert len(model.seen) == 1


def test_sliding_window():
    """A long prompt keeps its end, and past the context the window slides."""
    model = Table(context_length=3)
    a, b = generate(PlainRows(model), [0, 1, 2, 3], 2)

    assert model.seen == [[[1, 2, 3]], [[2, 3, a]]]
    assert 0 <= b < V


def test_stop_token():
    """A stop token ends the continuation and is not part of it; unasked, no token does."""
    whole = list(generate(PlainRows(Table()), PROMPT, 6))
    stop = whole[3]

    assert list(generate(PlainRows(Table()), PROMPT, 6, stop_token=stop)) == whole[: whole.index(stop)]


def test_nothing_to_generate():
    """No new tokens asked for, none given."""
    assert list(generate(PlainRows(Table()), PROMPT, 0)) == beam_search(PlainRows(Table()), PROMPT, 0, beams=2) == []


def test_generating_leaves_training_on():
    """Between two tokens of a stream the model is in the mode, and torch in the gradient mode, of before."""
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, context_length=4, dropout=0.5), V)
    stream = generate(PlainRows(model), PROMPT, 3)
    next(stream)

    assert model.training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
        ({"temperature": math.nan}, "temperature=nan must be at least 0"),
        ({"temperature": math.inf}, "temperature=inf must be at least 0 and finite"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1 must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
    ],
)
def test_refused_sampling(wrong, message):
    """A way to choose without meaning cannot be built."""
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must be at least 0"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1, V]}, f"token {V} of the prompt is not among the {V} of the vocabulary"),
        ({"prompt": [-1]}, "token -1 of the prompt is not among"),
    ],
)
def test_refused(wrong, message):
    """A value without meaning is refused at the call, before any token is asked for."""
    with pytest.raises(ConfigError, match=message):
        generate(PlainRows(Table()), **{"prompt": PROMPT, "max_new_tokens": 3, **wrong})


def test_all_refusals_at_once():
    """Several wrong values are reported together."""
    with pytest.raises(ConfigError) as refused:
        next_token_probabilities(rows(1, 2), temperature=-1, top_k=0, top_p=2)

    assert len(refused.value.problems) == 3


def test_repetition_penalty():
    """Logits of tokens that were there are divided by the penalty above 0 and multiplied below, once each."""
    found = penalize_repetition(torch.tensor([4.0, -4.0, 2.0, -2.0]), [1, 0, 0], 2.0)

    assert found.tolist() == [2.0, -8.0, 2.0, -2.0]


def test_repetition_penalty_counts_the_prompt():
    """With a penalty that nothing withstands, no token of the prompt or of the continuation comes again."""
    model = Table()
    model.logits = model.logits.abs()
    found = list(generate(PlainRows(model), [1], 4, Sampling(repetition_penalty=1e9)))

    assert sorted([1, *found]) == list(range(V))


def news_of(continuations):
    """Tokens and finish reason of each prompt, and how many prompts each step brought something to."""
    tokens, reasons, together = {}, {}, []
    while continuations:
        news = continuations.step()
        together.append(len(news))
        for number, token, reason in news:
            tokens.setdefault(number, []).extend([] if token is None else [token])
            reasons[number] = reason
    return tokens, reasons, together


PROMPTS = [[0], [1, 2, 3, 4], [2, 2], [3, 1, 0], [4] * 7]


@pytest.mark.parametrize("capacity", [1, 2, 5, 9])
def test_prompts_side_by_side(capacity):
    """Prompts of different lengths have the continuations that each has alone, however many are read together."""
    continuations = Continuations(PlainRows(Table()), 5, Sampling(temperature=1.0), capacity=capacity)
    for number, prompt in enumerate(PROMPTS):
        assert continuations.add(prompt, torch.Generator().manual_seed(number)) == number
    tokens, reasons, together = news_of(continuations)

    assert max(together) == min(capacity, len(PROMPTS))
    assert set(reasons.values()) == {"length"}
    for number, prompt in enumerate(PROMPTS):
        drawn = generate(
            PlainRows(Table()), prompt, 5, Sampling(temperature=1.0), torch.Generator().manual_seed(number)
        )
        assert tokens[number] == list(drawn)


def test_a_row_is_used_again():
    """A prompt that waits takes the place of one that stops, and each that stops says so."""
    alone = [list(generate(PlainRows(Table()), prompt, 5)) for prompt in PROMPTS]
    stop = alone[1][2]
    continuations = Continuations(PlainRows(Table()), 5, stop_token=stop, capacity=2)
    for prompt in PROMPTS:
        continuations.add(prompt)
    tokens, reasons, _ = news_of(continuations)

    for number, whole in enumerate(alone):
        assert tokens[number] == (whole[: whole.index(stop)] if stop in whole else whole)
        assert reasons[number] == ("stop" if stop in whole else "length")


def test_an_ended_prompt_is_not_continued():
    """A prompt that is ended from outside, open or waiting, brings nothing more, and the others all they have."""
    continuations = Continuations(PlainRows(Table()), 5, capacity=2)
    for prompt in PROMPTS:
        continuations.add(prompt)
    continuations.step()
    continuations.end(0)
    continuations.end(3)
    tokens, _, _ = news_of(continuations)

    assert sorted(tokens) == [1, 2, 4]
    assert tokens[4] == list(generate(PlainRows(Table()), PROMPTS[4], 5))
