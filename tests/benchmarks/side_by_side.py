"""What the benchmarks share: how long work takes, fresh processes in turns, and a table of what was measured."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def seconds(work):
    """Seconds that `work()` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_a_process(module, *arguments, **environ):
    """What `python -m module arguments` prints last, read as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def in_turns(names, rounds, measure):
    """What `measure(name)` finds for each name, once a round, the names taking turns."""
    found = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measure(name))
    return found


def table(title, **figures):
    """Print the median and the range of each."""
    print(f"\n{title}")
    for name, values in figures.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name.replace('_', ' '):<44} {middle:8.4f}   ({low:.4f} to {high:.4f})")
