"""What the benchmarks share: how long work takes, and a table of what was measured."""

import statistics
import time


def seconds(work):
    """Seconds that `work()` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(title, **figures):
    """Print the median and the range of each."""
    print(f"\n{title}")
    for name, values in figures.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name.replace('_', ' '):<44} {middle:8.4f}   ({low:.4f} to {high:.4f})")
