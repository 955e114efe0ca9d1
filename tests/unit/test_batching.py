"""Continuations that share a batch: each gets what it would get alone, whoever comes and goes."""

import pytest
import torch

from job.model.batching import Batch, Continuation, Prompt
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.rows import CachedRows
from job.model.sampling import Sampling
from tests.unit.test_decoder import T, V, model_of, numbers

MODEL = model_of()
DECODER = Decoder(MODEL)
HOT = Sampling(temperature=1.3)


def asked(count=5, new=6, seed=0, **settings):
    return Continuation(prompt=Prompt(numbers(count, seed)), max_new_tokens=new, **settings)


def run(batch, *arriving, steps=100):
    """Let continuations join one a step, as rows become free, and step until all have ended -> why each has."""
    waiting, reasons = list(arriving), {}
    for _ in range(steps):
        if waiting and len(batch) < batch.rows:
            batch.join(waiting.pop(0))
        for update in batch.step():
            if update.finish_reason:
                reasons[update.who] = update.finish_reason
        if not waiting and not len(batch):
            break
    return [reasons[one] for one in arriving]


def alone(one):
    """What `generate` continues the same prompt with."""
    generator = one.generator and torch.Generator().manual_seed(one.generator.initial_seed())
    return list(generate(CachedRows(DECODER, 1), one.prompt.tokens, one.max_new_tokens, one.sampling, generator))


def test_each_is_continued_as_alone():
    """Prompts of many lengths, longer than a piece too, get the tokens that `generate` gives each by itself."""
    some = [
        asked(count, new, seed=count, sampling=HOT, generator=torch.Generator().manual_seed(count))
        for count, new in ((1, 6), (12, 9), (7, 1), (T - 3, 3), (2, 15), (9, 4), (3, 12))
    ]
    reasons = run(Batch(DECODER, 3, chunk=4), *some)

    assert [one.tokens for one in some] == [alone(one) for one in some]
    assert reasons == ["length"] * len(some)


def test_a_long_prompt_holds_nobody_up():
    """While a prompt is read piece by piece, one that is being continued gets a token at every step."""
    batch = Batch(DECODER, 2, chunk=4)
    first, long = asked(2, 20), asked(T - 2, 2)
    batch.join(first)
    batch.step()
    batch.join(long)
    gained = []
    while not long.tokens:
        before = len(first.tokens)
        batch.step()
        gained.append(len(first.tokens) - before)

    assert gained == [1] * 6


def test_prompts_are_read_in_turns():
    """A short prompt that comes after a long one is answered before the long one is read."""
    batch = Batch(DECODER, 2, chunk=4)
    long, short = asked(T - 2, 2), asked(3, 4)
    batch.join(long)
    batch.join(short)
    run(batch, steps=3)

    assert short.tokens
    assert not long.tokens


class Counting:
    """A decoder that counts the pieces it reads."""

    def __init__(self, inner):
        self._inner, self.pieces = inner, 0

    def hidden(self, *what):
        self.pieces += 1
        return self._inner.hidden(*what)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_choices_of_one_prompt():
    """A prompt of several continuations is read once, and each draws for itself."""
    decoder = Counting(DECODER)
    prompt = Prompt(numbers(10))
    some = [
        Continuation(prompt=prompt, max_new_tokens=8, sampling=HOT, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2, 3)
    ]
    run(Batch(decoder, 3, chunk=4), *some)

    assert [one.tokens for one in some] == [alone(one) for one in some]
    assert decoder.pieces == 3
    assert some[0].tokens != some[1].tokens


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_the_one_that_reads_leaves(steps):
    """When the continuation that reads a shared prompt leaves, at whatever moment, another one reads it."""
    prompt = Prompt(numbers(10))
    some = [Continuation(prompt=prompt, max_new_tokens=5) for _ in range(3)]
    batch = Batch(DECODER, 3, chunk=4)
    for one in some:
        batch.join(one)
    for _ in range(steps):
        batch.step()
    batch.leave(some[0])
    run(batch)

    assert some[1].tokens == some[2].tokens == alone(some[1])


def test_leaving_frees_the_row():
    """A row is free as soon as its continuation leaves, and the others go on as if nothing had been."""
    batch = Batch(DECODER, 2)
    gone, stays = asked(4, 15), asked(6, 15, seed=1)
    for one in (gone, stays):
        batch.join(one)
    batch.step()
    batch.leave(gone)
    batch.leave(gone)
    comes = asked(3, 9, seed=2)
    batch.join(comes)
    run(batch)

    assert [stays.tokens, comes.tokens] == [alone(stays), alone(comes)]


def test_the_stop_token_ends_one():
    """A continuation ends before its stop token, and says so; another with the same prompt goes on."""
    free = asked(5, 12)
    expected = alone(free)
    stops = asked(5, 12, stop_token=expected[4])
    reasons = run(Batch(DECODER, 2), free, stops)

    assert stops.tokens == expected[: expected.index(expected[4])]
    assert free.tokens == expected
    assert reasons == ["length", "stop"]


def test_scores_are_the_models_own():
    """Prompt and new tokens are scored with the model's log-probabilities, whatever the sampling does with them."""
    one = Continuation(
        prompt=Prompt(numbers(10), scores=3), max_new_tokens=4, scores=2, sampling=Sampling(temperature=0.1, top_k=1)
    )
    batch, found = Batch(DECODER, 1, chunk=4), []
    batch.join(one)
    while len(batch):
        found += [update.token for update in batch.step()]
    tokens = [*one.prompt.tokens, *one.tokens]
    expected = MODEL(torch.tensor([tokens]))[0].log_softmax(-1)
    scored = [*one.prompt.scored, *found]

    assert [score.token for score in scored] == tokens
    assert scored[0].logprob is None
    for place, score in enumerate(scored[1:]):
        assert score.logprob == pytest.approx(expected[place, score.token].item(), abs=1e-4)
        best = expected[place].topk(3 if place < 9 else 2)
        assert [token for token, _ in score.best] == best.indices.tolist()
        assert [logprob for _, logprob in score.best] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_only_the_tokenizers_tokens():
    """Of a model that knows more tokens than its tokenizer, only the tokenizer's are chosen and scored."""
    one = asked(5, 15, sampling=Sampling(temperature=100.0), scores=V)
    batch = Batch(DECODER, 1, vocab_size=5)
    batch.join(one)
    updates = [update for _ in range(15) for update in batch.step()]

    assert max(one.tokens) < 5
    assert {len(update.token.best) for update in updates} == {5}


def test_no_new_tokens():
    """A continuation of no tokens ends when its prompt is read."""
    one = Continuation(prompt=Prompt(numbers(T), scores=0), max_new_tokens=0)

    assert run(Batch(DECODER, 1), one) == ["length"]
    assert len(one.prompt.scored) == T
    assert not one.tokens


def test_what_does_not_fit():
    """More tokens than the context, no prompt, and a row too many are refused, and nothing has changed then."""
    batch = Batch(DECODER, 1)
    for wrong in (asked(T, 1), Continuation(prompt=Prompt([]), max_new_tokens=1)):
        with pytest.raises(ValueError, match="context 24"):
            batch.join(wrong)
    batch.join(asked())
    with pytest.raises(IndexError, match="all 1 rows"):
        batch.join(asked())

    assert len(batch) == 1


def test_with_the_whole_width_nothing_others_do_matters():
    """With `whole`, a continuation's scores are the same to the last bit in any company, in any row, at any time."""

    def scores(company, late):
        one = asked(9, 12, seed=5, scores=0)
        batch, found = Batch(DECODER, 4, whole=True, chunk=4), []
        others = [asked(count, 3 + count, seed=count) for count in (1, 2, 8, 5)[:company]]
        for other in others[:late]:
            batch.join(other)
        batch.step()
        batch.join(one)
        for other in others[late:]:
            batch.join(other)
        while len(batch):
            found += [update.token.logprob for update in batch.step() if update.who is one]
        return found

    expected = scores(0, 0)

    assert [scores(*case) for case in ((1, 0), (1, 1), (3, 0), (3, 2), (3, 3))] == [expected] * 5
