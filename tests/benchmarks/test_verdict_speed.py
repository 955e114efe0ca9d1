"""The book's chapter 5, ten epochs of GPT-2's smallest shape on its story, beside the script that comes with it.

Whole processes, from start to end, one after the other, once or $BENCH_ROUNDS times: ours in bf16, with evaluations,
samples, checkpoints, export and report. The machine must have nothing else to do. The script is that of a checkout,
`LLMs-from-scratch`, in $PEERS.
"""

import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from job.model.projection import has_bf16_products
from tests.benchmarks.side_by_side import table
from tests.benchmarks.test_baby_speed import ROOT, timed
from tests.parity.test_forward_parity import BPE_FILES
from tests.unit.data_support import published

CHAPTER = Path(os.environ.get("PEERS", "/nowhere"), "LLMs-from-scratch/ch05/01_main-chapter-code")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not has_bf16_products(), reason="the figure is for a processor that multiplies in bf16"),
    pytest.mark.skipif(
        not (CHAPTER / "gpt_train.py").exists(), reason="needs a checkout of LLMs-from-scratch below $PEERS"
    ),
]


def script(folder):
    """Seconds, and the validation losses that it printed."""
    shutil.copytree(CHAPTER, folder, dirs_exist_ok=True)
    shutil.copy(published("the-verdict.txt"), folder / "the-verdict.txt")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for name, hashed in BPE_FILES.items():
        shutil.copy(published(name), tokenizer / hashed)
    environ = os.environ | {"TIKTOKEN_CACHE_DIR": str(tokenizer), "MPLBACKEND": "agg"}
    seconds, said, _ = timed([sys.executable, "gpt_train.py"], cwd=folder, env=environ)
    return seconds, [float(loss) for loss in re.findall(r"Val loss ([\d.]+)", said)]


def ours(folder):
    """Seconds, and the validation losses."""
    settings = [
        f"run_uri={folder}/run",
        f"data.cache_dir={folder}/cache",
        "runtime.precision=bf16",
        "observe.metrics_port=none",
    ]
    command = [sys.executable, "-m", "job", "--log-format", "json", "train", "--preset", "verdict"]
    command += [word for setting in settings for word in ("--set", setting)]
    environ = os.environ | {"GPT_JOB_ASSETS": str(published("the-verdict.txt").parent)}
    seconds, *_ = timed(command, cwd=ROOT, env=environ)
    events = map(json.loads, (folder / "run/events.jsonl").read_text().splitlines())
    return seconds, [event["val_loss"] for event in events if event["event"] == "evaluated"]


def test_beside_the_chapters_script(tmp_path):
    """At most half of its time, and a loss that falls as far: the time by the median, the loss in each round."""
    theirs, own = [], []
    for number in range(ROUNDS):
        theirs.append(script(tmp_path / f"script-{number}"))
        own.append(ours(tmp_path / f"ours-{number}"))
    table(
        "ten epochs of the-verdict, seconds from start to end", script=[s for s, _ in theirs], ours=[s for s, _ in own]
    )
    shares, further = [], []
    for (seconds, losses), (their_seconds, their_losses) in zip(own, theirs, strict=True):
        shares.append(seconds / their_seconds)
        further.append(min(losses) - min(their_losses))
        print(f"  {seconds:.0f} s of the script's {their_seconds:.0f}: {shares[-1]:.3f}", end="; ")
        print(f"lowest validation loss {min(losses):.3f}, the script's {min(their_losses):.3f}")
    print(f"  of the script's time: {statistics.median(shares):.3f}")

    assert statistics.median(shares) <= 0.5
    assert max(further) <= 0.1
