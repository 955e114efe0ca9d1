"""What counts as another answer, and which prompts are made."""

import pytest
import torch

from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.errors import ConfigError
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.rows import CachedRows
from job.serving.testing.expected import Expected, expect, expect_of_answer
from job.serving.testing.plan import Plan, Thresholds
from job.serving.testing.prompts import mixed_prompts
from tests.unit.weights_support import model

SURE = {"prompt": "p", "tie": 1e-3}
ANSWER = Expected(text="abcd", ends=(1, 2, 3, 4), margins=(1.0, 1.0, 5e-4, 1.0), **SURE)


@pytest.mark.parametrize("text", ["xbcd", "axcd", "abcx", "", "a", "abcde"])
def test_another_answer(text):
    """Another, missing or further token where the model is sure is a contradiction."""
    assert ANSWER.contradicts(text)


@pytest.mark.parametrize("text", ["abcd", "abxy", "abxd"])
def test_the_same_answer(text):
    """The same text is none, nor what begins to differ where two tokens are tied."""
    assert not ANSWER.contradicts(text)


def test_a_tie_excuses_nothing_before_it():
    """A text that differs before the tie is not excused by it."""
    assert ANSWER.contradicts("axxx")


def test_a_character_of_several_tokens():
    """Where several tokens make a character, a tie at any of them may make it another."""
    tied = {"text": "aé", "ends": (1, 1, 2), **SURE}

    assert not Expected(margins=(1.0, 1e-4, 1.0), **tied).contradicts("aë")
    assert not Expected(margins=(1.0, 1.0, 1e-4), **tied).contradicts("aë")
    assert Expected(margins=(1e-4, 1.0, 1.0), **tied).contradicts("aë")


def test_an_end_that_is_tied():
    """Where the end of the text was tied with going on, an answer may go on; else it may not."""
    tied = {"text": "a", "ends": (1,), **SURE}

    assert not Expected(margins=(1.0, 1e-4), **tied).contradicts("ab")
    assert Expected(margins=(1.0, 1.0), **tied).contradicts("ab")
    assert Expected(margins=(1.0,), **tied).contradicts("ab")


@pytest.fixture(scope="module")
def small():
    return model(vocab_size=257, n_layer=1, n_head=2, n_embd=16, context_length=64)


def test_what_is_expected_is_what_generate_says(small):
    """Text and margins are those of `generate` and of the model's own logits."""
    found = expect(Decoder(small), ByteTokenizer(), "hello", 9)
    prompt = list(b"hello")
    tokens = list(generate(CachedRows(Decoder(small), 1), prompt, 9))
    logits = small(torch.tensor([prompt + tokens]))[0]
    best = logits[4:-1].topk(2).values

    assert found.text == ByteTokenizer().decode(tokens)
    assert list(found.margins) == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-4)
    logprobs = logits[:4].log_softmax(-1)[range(4), prompt[1:]]
    assert list(found.prompt_logprobs) == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_what_a_server_says_of_itself():
    """From an answer with log-probabilities come the ends of tokens and the lead of the best."""
    top = [{"a": -0.1, "b": -2.1}, {"bc": -0.5, "x": -0.5003}]
    logprobs = {"text_offset": [0, 1], "top_logprobs": top, "tokens": ["a", "bc"], "token_logprobs": [-0.1, -0.5]}
    found = expect_of_answer("p", {"choices": [{"text": "abc", "logprobs": logprobs}]})

    assert found.ends == (1, 3)
    assert found.margins == pytest.approx((2.0, 0.0003))


def test_prompts_of_mixed_lengths():
    """Made prompts are of 4 to the longest allowed tokens, of every order of magnitude, and the same again."""
    prompts = mixed_prompts(200, 256, 3, ByteTokenizer())
    lengths = sorted(len(ByteTokenizer().encode(prompt)) for prompt in prompts)

    assert (lengths[0], lengths[-1] <= 256, lengths[-1] > 200) == (4, True, True)
    assert 20 < lengths[100] < 60  # half of the logarithm
    assert prompts == mixed_prompts(200, 256, 3, ByteTokenizer())
    assert prompts != mixed_prompts(200, 256, 4, ByteTokenizer())


def test_prompts_for_an_alphabet():
    """A tokenizer of few characters is asked in them alone, also when no text has any of them."""
    for alphabet in ("abc \n", "\u4e00\u4e8c"):
        tokenizer = CharTokenizer(alphabet)

        assert all(set(prompt) <= set(alphabet) and prompt for prompt in mixed_prompts(20, 30, 0, tokenizer))


def load(name, **figures):
    return {
        "name": name,
        "failed": 0,
        "output_throughput": 10.0,
        "request_throughput": 1.0,
        "p99_ttft_ms": 5.0,
    } | figures


def verdicts(thresholds, *loads, ready=2.0, bounded=None):
    found = thresholds.judge(loads, ready, loads if bounded is None else bounded)
    return {(one.name, one.load): one.passed for one in found if one.name != "max_failures"}


def test_latencies_are_bounded_in_every_load():
    """A latency has its limit in each load that is bounded."""
    loads = [load("one", p99_ttft_ms=5.0), load("two", p99_ttft_ms=5.1)]

    assert verdicts(Thresholds(max_ttft_p99=5.0), *loads) == {
        ("max_ttft_p99", "one"): True,
        ("max_ttft_p99", "two"): False,
    }
    assert verdicts(Thresholds(max_ttft_p99=5.0), *loads, bounded=loads[:1]) == {("max_ttft_p99", "one"): True}


def test_throughput_is_that_of_the_best_load():
    """A floor is reached by one load; what is unknown reaches nothing."""
    loads = [load("one"), load("two", output_throughput=30.0)]

    assert verdicts(Thresholds(min_tokens_per_second=30.0), *loads) == {("min_tokens_per_second", "two"): True}
    assert verdicts(Thresholds(min_tokens_per_second=30.1), *loads) == {("min_tokens_per_second", "two"): False}
    assert verdicts(Thresholds(min_tokens_per_second=0.0)) == {("min_tokens_per_second", ""): False}
    assert verdicts(Thresholds(max_ttft_p99=5.0), load("one", p99_ttft_ms=None)) == {("max_ttft_p99", "one"): False}


def test_failures_and_readiness():
    """Failures of all loads add up; readiness is judged of a server that the test started."""
    found = Thresholds(max_failures=3).judge([load("one", failed=2), load("two", failed=2)], None, [])

    assert [(one.name, one.found, one.passed) for one in found] == [("max_failures", 4, False)]
    assert verdicts(Thresholds(max_ready_seconds=1.0)) == {("max_ready_seconds", ""): False}
    assert verdicts(Thresholds(max_ready_seconds=1.0), ready=None) == {}


@pytest.mark.parametrize(
    "wrong",
    [{"requests": 0}, {"max_tokens": 0}, {"concurrencies": (0,)}, {"rates": (-1.0,)}, {"sweep": 1}, {"seed": -1}],
)
def test_refused_plans(wrong):
    """A plan that cannot be carried out is refused before anything starts."""
    with pytest.raises(ConfigError):
        Plan(**wrong)


def test_a_sweep():
    """A sweep's rates lie evenly between half of what one at a time reached and what the server did."""
    assert [one.request_rate for one in Plan(sweep=3).sweep_loads(2.0, 9.0)] == [1.0, 5.0, 9.0]
