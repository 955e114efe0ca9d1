"""What a token costs: GPT-2's smallest shape with random weights, batch 1, a prompt of 32 tokens, greedy.

Each figure is a ratio of two things done side by side in one run, the median of several rounds. The machine must have
nothing else to do. litgpt, the fastest peer, is measured when it can be imported.
"""

import statistics
import time
from functools import partial
from itertools import pairwise

import pytest
import torch

from job.config import ModelConfig
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.gpt import GPT
from job.model.projection import fastest_dtype
from job.model.rows import CachedRows
from tests.benchmarks.side_by_side import seconds, table
from tests.parity.plain_models import PlainVerdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROUNDS = 5
V, CONTEXT, PROMPT = 50257, 1024, 32
LENGTHS = (100, 256, 900)
FASTEST = fastest_dtype(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(V, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(context_length=CONTEXT), V).eval()


@pytest.fixture(scope="module")
def ours(model, prompt):
    """Seconds that n new tokens take, as `generate --dtype auto` makes them; and each token's own."""
    decoder = Decoder(model, FASTEST)

    def run(count):
        started, arrived = time.perf_counter(), []
        for _ in generate(CachedRows(decoder, 1), prompt, count):
            arrived.append(time.perf_counter())
        return arrived[-1] - started, [after - before for before, after in pairwise(arrived)]

    run(3)
    return run


@pytest.fixture(scope="module")
def tutorial():
    """Seconds that n new tokens take the tutorial's loop: every token a forward over all, at every place all logits.

    Forwards are timed at several lengths and summed over those between: the whole would take a quarter of an hour.
    """
    torch.manual_seed(0)
    model = PlainVerdict(12, 12, 768, CONTEXT, V).eval()

    def step(length):
        return model(torch.randint(V, (1, length)))[0, -1].argmax()

    def run(count):
        last = PROMPT + count - 1
        points = sorted({PROMPT, (PROMPT + last) // 2, last})
        costs = {length: seconds(partial(step, length)) for length in points}
        total = 0.0
        for length in range(PROMPT, last + 1):
            low = max(point for point in points if point <= length)
            high = min(point for point in points if point >= length)
            part = 0 if low == high else (length - low) / (high - low)
            total += costs[low] * (1 - part) + costs[high] * part
        return total

    step(PROMPT)
    return run


@pytest.fixture(scope="module")
def litgpt(prompt):
    """Seconds that n new tokens take litgpt with bf16 weights and cache."""
    peer = pytest.importorskip("litgpt", reason="needs litgpt, the fastest peer")
    from litgpt.generate.base import generate as continue_prompt

    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "parallel_residual": False, "rotary_percentage": 1.0}
    config = peer.Config(block_size=CONTEXT, vocab_size=V, padding_multiple=64, **shape)
    model = peer.GPT(config).eval().to(torch.bfloat16)
    given = torch.tensor(prompt)

    def run(count):
        model.clear_kv_cache()
        model.set_kv_cache(batch_size=1, max_seq_length=PROMPT + count, dtype=torch.bfloat16)
        return seconds(lambda: continue_prompt(model, given, PROMPT + count, temperature=0.0))

    model.set_kv_cache(batch_size=1, dtype=torch.bfloat16)
    run(3)
    return run


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


def side_by_side(title, one, other, rounds=ROUNDS):
    """The median of other / one over interleaved rounds."""
    ones, others = [], []
    for _ in range(rounds):
        ones.append(one())
        others.append(other())
    ratios = [theirs / own for own, theirs in zip(ones, others, strict=True)]
    table(f"{title} ({torch.get_num_threads()} threads, {FASTEST})", ours=ones, other=others, ratio=ratios)
    return statistics.median(ratios)


@pytest.mark.parametrize(("count", "times"), [(100, 10), (900, 45)])
def test_beside_the_tutorials_loop(ours, tutorial, count, times):
    """At least 10 times as fast at 100 new tokens, and 45 times at 900."""
    title = f"seconds for {count} tokens, the tutorial's loop"
    ratio = side_by_side(title, lambda: ours(count)[0], lambda: tutorial(count), rounds=3)

    assert ratio >= times


@pytest.mark.parametrize("count", LENGTHS)
def test_beside_litgpt(ours, litgpt, count):
    """At least 1.1 times as fast as litgpt with bf16 weights and cache."""
    ratio = side_by_side(f"seconds for {count} tokens, litgpt in bf16", lambda: ours(count)[0], lambda: litgpt(count))

    assert ratio >= 1.1


def test_beside_reading_the_weights(ours, reading):
    """A token takes at most twice as long as reading the weights once."""
    ratio = side_by_side(
        "seconds to read the weights once",
        lambda: statistics.median(ours(100)[1]),
        lambda: statistics.median(reading() for _ in range(100)),
    )

    assert ratio >= 0.5


def test_flat_in_length(ours):
    """The last hundred of 900 tokens take at most 1.3 times as long as the first."""
    firsts, lasts = [], []
    for _ in range(ROUNDS):
        _, each = ours(900)
        firsts.append(statistics.median(each[:100]))
        lasts.append(statistics.median(each[-100:]))
    ratios = [last / first for first, last in zip(firsts, lasts, strict=True)]
    table("seconds a token", first_hundred=firsts, last_hundred=lasts, ratio=ratios)

    assert statistics.median(ratios) <= 1.3


def test_what_bf16_changes(model, prompt):
    """bf16 weights move the logits by less than a tenth of their spread, on average by less than a hundredth."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder(model, dtype)
        cache = decoder.new_cache(1)
        decoder.read(cache, cache.open(), prompt)
        tokens = torch.randint(V, (200,), generator=torch.Generator().manual_seed(1)).tolist()
        found.append(torch.stack([decoder.step(cache, [token])[0] for token in tokens]))
    logits, other = found
    apart = (other - logits).abs()
    print(f"\nlogits: spread {logits.std():.3f}, fp32 and bf16 {apart.mean():.5f} apart, at most {apart.max():.5f}")

    assert apart.max() < 0.1 * logits.std()
    assert apart.mean() < 0.01 * logits.std()
