"""What a training step costs on a CPU beside peers: fresh processes, interleaved, the best step of each round.

The machine must have nothing else to do. Peers come from checkouts below $PEERS (`nanoGPT`, `LLMs-from-scratch`,
`ng-video-lecture`); the figures against nanoGPT need its own code and are skipped without it.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from job.model.projection import has_bf16_products

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not has_bf16_products(), reason="the figures are for a processor that multiplies in bf16"),
]
ROOT = Path(__file__).parents[2]
THREADS = os.environ.get("BENCH_THREADS", "2")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
needs_nanogpt = pytest.mark.skipif(
    not Path(os.environ.get("PEERS", "/nowhere"), "nanoGPT/model.py").exists(),
    reason="needs a checkout of nanoGPT below $PEERS",
)


def measured(name, context, batch, dropout, steps):
    """One process's figures."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.peer_step", name, str(context), str(batch), str(dropout)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": THREADS, "STEPS": str(steps)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def side_by_side(names, context, batch, dropout, steps=4, rounds=ROUNDS):
    """Figures of each name, one a round, interleaved."""
    found = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measured(name, context, batch, dropout, steps))
    print(f"\ncontext {context}, batch {batch}, dropout {dropout}, {THREADS} threads, best step of each round")
    for name, rows in found.items():
        bests, memory = [row["best"] for row in rows], max(row["memory"] for row in rows)
        said = "  ".join(f"{best:.3f}" for best in bests)
        print(f"  {name:<14} {said} s   {context * batch / min(bests):,.0f} tokens/s   {memory / 2**20:,.0f} MiB")
    return found


def ratio(found, other):
    """How many times as long the other's best step takes, the median over the rounds."""
    ratios = [theirs["best"] / own["best"] for own, theirs in zip(found["ours"], found[other], strict=True)]
    print(f"  {other} / ours: {statistics.median(ratios):.2f}")
    return statistics.median(ratios)


def peers(*names):
    return ["ours", *(name for name in names if "nanogpt" not in name or needs_nanogpt.args[0] is False)]


@pytest.fixture(scope="module")
def short():
    """Context 256, batch 2, dropout 0.1."""
    return side_by_side(peers("tutorial", "nanogpt-best"), 256, 2, 0.1)


def test_beside_the_tutorial(short):
    """At least 2.1 times as fast as the tutorial's loop."""
    assert ratio(short, "tutorial") >= 2.1


@needs_nanogpt
def test_beside_nanogpt_at_its_best(short):
    """At least 1.15 times as fast as nanoGPT with fused AdamW and autocast switched on by hand."""
    assert ratio(short, "nanogpt-best") >= 1.15


def test_share_of_the_limit(short):
    """At least 60 % of what bf16 products reach by themselves."""
    shares = [row["flops"] / row["best"] / row["peak"] for row in short["ours"]]
    print(f"  share of {statistics.median(row['peak'] for row in short['ours']) / 1e9:.0f} GFLOP/s: {shares}")

    assert statistics.median(shares) >= 0.6


@needs_nanogpt
def test_at_length_without_dropout():
    """Context 1024, batch 4: 1.9 times nanoGPT as it ships, 1.1 times nanoGPT at its best."""
    found = side_by_side(peers("nanogpt", "nanogpt-best"), 1024, 4, 0.0, steps=1, rounds=1)

    assert ratio(found, "nanogpt") >= 1.9
    assert ratio(found, "nanogpt-best") >= 1.1


@needs_nanogpt
def test_at_length_with_dropout():
    """Context 1024, batch 4, attention dropout too: 2 times nanoGPT as it ships, in less than half its memory."""
    found = side_by_side(peers("nanogpt"), 1024, 4, 0.1, steps=1, rounds=1)

    assert ratio(found, "nanogpt") >= 2
    assert found["ours"][0]["memory"] < found["nanogpt"][0]["memory"] / 2
