"""What the process does with memory that it has freed."""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from job.infra.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
ROUNDS, BYTES = 6, 64 << 20


def faults(keep):
    """Pages that the kernel had to find while 64 MiB were filled and freed again and again."""
    if keep:
        keep_freed_memory()
    for _ in range(8):  # until the heap has found its size
        torch.zeros(BYTES, dtype=torch.uint8).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        torch.zeros(BYTES, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_a_fresh_process(keep):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(faults, keep).result()


def test_freed_memory_is_used_again():
    """What one step freed the next one fills without a page fault; by default each page is asked for anew."""
    pages = ROUNDS * BYTES // resource.getpagesize()

    assert in_a_fresh_process(keep=False) > 0.9 * pages
    assert in_a_fresh_process(keep=True) < 0.1 * pages
