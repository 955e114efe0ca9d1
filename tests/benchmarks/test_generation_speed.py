"""What a token costs: GPT-2's smallest shape with random weights, batch 1, a prompt of 32 tokens, greedy.

Each figure is a ratio of two things done side by side in one run, the median of several rounds: peers in fresh
processes, ours and theirs in turns. The machine must have nothing else to do. The tutorial's model comes from a
checkout, `LLMs-from-scratch`, below $PEERS; without one the plain model of the parity tests stands in for it. litgpt,
the fastest peer, is measured where it is installed.
"""

import os
import statistics

import pytest
import torch

from job.model.decoder import Decoder
from job.model.projection import fastest_dtype
from tests.benchmarks.peer_generation import our_model, our_tokens, prompt
from tests.benchmarks.peer_step import V, missing
from tests.benchmarks.side_by_side import in_a_process, in_turns, seconds, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
LENGTHS = (100, 256, 900)
FASTEST = fastest_dtype(torch.device("cpu"))
TUTORIAL = "plain" if missing("tutorial") else "tutorial"


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def measured():
    """Seconds that so many new tokens take ours and each peer that is there, one process a round, interleaved."""
    names = [name for name in ("ours", TUTORIAL, "litgpt") if not missing(name)]
    return in_turns(names, ROUNDS, lambda name: in_a_process("tests.benchmarks.peer_generation", name, *LENGTHS))


@pytest.fixture(scope="module")
def model():
    return our_model()


@pytest.fixture(scope="module")
def ours(model):
    """Seconds of each of n new tokens."""
    return our_tokens(model)


@pytest.fixture(scope="module")
def reading(model):
    """Seconds that it takes to read the weights that a token needs, from copies like the decoder's."""
    used = [parameter for name, parameter in model.named_parameters() if name != "wpe.weight"]
    copies = [parameter.detach().to(FASTEST).clone().flatten() for parameter in used]
    words = [copy[: copy.numel() // 2 * 2].view(torch.float32) for copy in copies]

    def read():
        return seconds(lambda: [each.sum() for each in words])

    read()
    return read


def ratio(title, ones, others):
    """The median of other / one."""
    ratios = [theirs / own for own, theirs in zip(ones, others, strict=True)]
    table(f"{title} ({torch.get_num_threads()} threads, {FASTEST})", ours=ones, other=others, ratio=ratios)
    return statistics.median(ratios)


def beside(measured, name, count):
    """How many times as long a peer takes."""
    ones, others = ([row[str(count)] for row in measured[each]] for each in ("ours", name))
    return ratio(f"seconds for {count} tokens, other: {name}", ones, others)


@pytest.mark.parametrize(("count", "times"), [(100, 10), (900, 45)])
def test_beside_the_tutorials_loop(measured, count, times):
    """At least 10 times as fast at 100 new tokens, and 45 times at 900."""
    assert beside(measured, TUTORIAL, count) >= times


@pytest.mark.skipif(missing("litgpt") is not None, reason=str(missing("litgpt")))
@pytest.mark.parametrize("count", LENGTHS)
def test_beside_litgpt(measured, count):
    """At least 1.1 times as fast as litgpt with bf16 weights and cache."""
    assert beside(measured, "litgpt", count) >= 1.1


def test_beside_reading_the_weights(ours, reading):
    """A token takes at most twice as long as reading the weights once."""
    ones, others = [], []
    for _ in range(ROUNDS):
        ones.append(statistics.median(ours(100)[1:]))
        others.append(statistics.median(reading() for _ in range(100)))

    assert ratio("seconds of a token, other: to read the weights once", ones, others) >= 0.5


def test_flat_in_length(ours):
    """The last hundred of 900 tokens take at most 1.3 times as long as the first."""
    firsts, lasts = [], []
    for _ in range(ROUNDS):
        each = ours(900)[1:]
        firsts.append(statistics.median(each[:100]))
        lasts.append(statistics.median(each[-100:]))
    ratios = [last / first for first, last in zip(firsts, lasts, strict=True)]
    table("seconds a token", first_hundred=firsts, last_hundred=lasts, ratio=ratios)

    assert statistics.median(ratios) <= 1.3


def test_what_bf16_changes(model):
    """bf16 weights move the logits by less than a tenth of their spread, on average by less than a hundredth."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder(model, dtype)
        cache = decoder.new_cache(1)
        decoder.read(cache, cache.open(), prompt())
        tokens = torch.randint(V, (200,), generator=torch.Generator().manual_seed(1)).tolist()
        found.append(torch.stack([decoder.step(cache, [token])[0] for token in tokens]))
    logits, other = found
    apart = (other - logits).abs()
    print(f"\nlogits: spread {logits.std():.3f}, fp32 and bf16 {apart.mean():.5f} apart, at most {apart.max():.5f}")

    assert apart.max() < 0.1 * logits.std()
    assert apart.mean() < 0.01 * logits.std()
