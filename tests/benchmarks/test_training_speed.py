"""What a training step costs beside peers: fresh processes, interleaved, the best step of each; medians over rounds.

The machine must have nothing else to do. Peers come from checkouts below $PEERS (`nanoGPT`, `LLMs-from-scratch`) or are
installed (litgpt, transformers); figures against one that is not there are skipped. Without the tutorial's checkout the
plain model of the parity tests stands in for it, and is called so. The figure for a GPU has been measured on none yet.
"""

import os
import statistics

import pytest
import torch

from job.model.projection import has_bf16_products
from tests.benchmarks.peer_step import missing
from tests.benchmarks.side_by_side import in_a_process, in_turns

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
THREADS = os.environ.get("BENCH_THREADS", "2")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
TUTORIAL = "plain" if missing("tutorial") else "tutorial"
on_a_cpu = pytest.mark.skipif(not has_bf16_products(), reason="the figures are for a processor that multiplies in bf16")


def needs(name):
    return pytest.mark.skipif(missing(name) is not None, reason=str(missing(name)))


def side_by_side(names, context, batch, dropout, steps=4, device="cpu"):
    """Figures of ours and of each name that is there, one a round, interleaved."""

    def measured(name):
        arguments = name, context, batch, dropout, device
        return in_a_process("tests.benchmarks.peer_step", *arguments, OMP_NUM_THREADS=THREADS, STEPS=str(steps))

    found = in_turns(["ours", *(name for name in names if not missing(name))], ROUNDS, measured)
    where = f"{THREADS} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"\ncontext {context}, batch {batch}, dropout {dropout}, {where}, best step of each round, seconds")
    for name, rows in found.items():
        bests, memory = [row["best"] for row in rows], max(row["memory"] for row in rows)
        middle = statistics.median(bests)
        speed = f"{context * batch / middle:,.0f} tokens/s   {memory / 2**20:,.0f} MiB"
        print(f"  {name:<16} {'  '.join(f'{best:.3f}' for best in bests)}   median {middle:.3f}   {speed}")
    return found


def ratio(found, other):
    """How many times as long the other's best step takes, the median over the rounds."""
    ratios = [theirs["best"] / own["best"] for own, theirs in zip(found["ours"], found[other], strict=True)]
    said = "  ".join(f"{each:.2f}" for each in ratios)
    print(f"  {other} / ours: {said}   median {statistics.median(ratios):.2f}")
    return statistics.median(ratios)


@pytest.fixture(scope="module")
def short():
    """Context 256, batch 2, dropout 0.1."""
    return side_by_side([TUTORIAL, "nanogpt-best", "litgpt", "litgpt-compile", "transformers"], 256, 2, 0.1)


@pytest.fixture(scope="module")
def long():
    """Context 1024, batch 4, no dropout; one step of each, after one that does not count."""
    return side_by_side(["nanogpt", "nanogpt-best", "litgpt", "transformers"], 1024, 4, 0.0, steps=1)


@on_a_cpu
def test_beside_the_tutorial(short):
    """At least 2.1 times as fast as the tutorial's loop."""
    assert ratio(short, TUTORIAL) >= 2.1


@on_a_cpu
@needs("nanogpt")
def test_beside_nanogpt_at_its_best(short):
    """At least 1.15 times as fast as nanoGPT with fused AdamW and autocast switched on by hand."""
    assert ratio(short, "nanogpt-best") >= 1.15


@on_a_cpu
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in ("litgpt", "litgpt-compile")])
def test_beside_litgpt(short, name):
    """Faster than litgpt, as its pretrain.py has it and without the compiling, though litgpt drops nothing."""
    assert ratio(short, name) > 1


@on_a_cpu
@needs("transformers")
def test_beside_transformers(short):
    """Faster than transformers' GPT-2 in bf16."""
    assert ratio(short, "transformers") > 1


@on_a_cpu
def test_share_of_the_limit(short):
    """At least 60 % of what bf16 products reach by themselves."""
    shares = [row["flops"] / row["best"] / row["peak"] for row in short["ours"]]
    print(f"  share of {statistics.median(row['peak'] for row in short['ours']) / 1e9:.0f} GFLOP/s: {shares}")

    assert statistics.median(shares) >= 0.6


@on_a_cpu
@pytest.mark.parametrize(
    ("name", "times"),
    [
        pytest.param(name, times, marks=needs(name))
        for name, times in {"nanogpt": 1.9, "nanogpt-best": 1.1, "litgpt": 1, "transformers": 1}.items()
    ],
)
def test_at_length_without_dropout(long, name, times):
    """Context 1024, batch 4: 1.9 times nanoGPT as it ships, 1.1 times nanoGPT at its best, no slower than others."""
    assert ratio(long, name) >= times


@on_a_cpu
@needs("nanogpt")
def test_at_length_with_dropout():
    """Context 1024, batch 4, attention dropout too: 2 times nanoGPT as it ships, in less than half its memory."""
    found = side_by_side(["nanogpt"], 1024, 4, 0.1, steps=1)
    own, theirs = ([row["memory"] for row in found[name]] for name in ("ours", "nanogpt"))

    assert ratio(found, "nanogpt") >= 2
    assert max(own) < min(theirs) / 2


@needs("nanogpt-compile")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")
def test_on_a_gpu():
    """On a GPU, at train.py's context and batch: at least 1.3 times as fast as nanoGPT compiled, as train.py has it."""
    names = ["nanogpt", "nanogpt-compile", "litgpt-compile", "transformers"]
    found = side_by_side(names, 1024, 12, 0.0, steps=20, device="cuda")
    ratios = {name: ratio(found, name) for name in found if name != "ours"}

    assert ratios["nanogpt-compile"] >= 1.3
