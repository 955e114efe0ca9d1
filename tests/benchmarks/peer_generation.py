"""Seconds that new tokens take one peer, or ours, in a process of its own.

`python -m tests.benchmarks.peer_generation NAME COUNT...` takes GPT-2's smallest shape with random weights, batch 1, a
prompt of 32 tokens, greedy, on as many threads as OMP_NUM_THREADS says, and prints one line of JSON, one figure a
count. Peers are found where `peer_step` finds them.
"""

import json
import sys
import time
from functools import partial
from itertools import pairwise

import torch

from tests.benchmarks.peer_step import V, litgpts_model, missing, plain_model, tutorials_model
from tests.benchmarks.side_by_side import seconds

CONTEXT, PROMPT = 1024, 32


def prompt():
    return torch.randint(V, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


def our_model():
    from job.config import ModelConfig
    from job.model.gpt import GPT

    torch.manual_seed(0)
    return GPT(ModelConfig(context_length=CONTEXT), V).eval()


def our_tokens(model):
    """A function of a count: the seconds of each new token, as `generate --dtype auto` makes them."""
    from job.model.decoder import Decoder
    from job.model.generation import generate
    from job.model.projection import fastest_dtype
    from job.model.rows import CachedRows

    decoder, given = Decoder(model, fastest_dtype(torch.device("cpu"))), prompt()

    def run(count):
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in generate(CachedRows(decoder, 1), given, count)]
        return [after - before for before, after in pairwise(times)]

    run(3)
    return run


def ours():
    each = our_tokens(our_model())
    return lambda count: sum(each(count))


def chapter_loop(model):
    """The tutorial's loop: every token a forward over all, at every place all logits.

    Forwards are timed at several lengths and summed over those between: the whole would take a quarter of an hour.
    """
    model.eval()

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


def litgpt():
    """With bf16 weights and cache."""
    from litgpt.generate.base import generate

    model, given = litgpts_model(CONTEXT).eval().to(torch.bfloat16), torch.tensor(prompt())

    def run(count):
        model.clear_kv_cache()
        model.set_kv_cache(batch_size=1, max_seq_length=PROMPT + count, dtype=torch.bfloat16)
        return seconds(lambda: generate(model, given, PROMPT + count, temperature=0.0))

    run(3)
    return run


WAYS = {
    "ours": ours,
    "tutorial": lambda: chapter_loop(tutorials_model(CONTEXT, 0.0)),
    "plain": lambda: chapter_loop(plain_model(CONTEXT, 0.0)),
    "litgpt": litgpt,
}


def main(name, *counts):
    if reason := missing(name):
        sys.exit(f"{name} {reason}")
    with torch.inference_mode():
        run = WAYS[name]()
        print(json.dumps({count: run(int(count)) for count in counts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
