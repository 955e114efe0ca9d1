"""Work shared among copies of a process, which has no threads."""

import subprocess
import sys

import pytest

SHARED = """
import os, signal, sys
from job.report.copies import make_all

def fail(): raise ValueError("not to be drawn")
def die(): os.kill(os.getpid(), signal.SIGKILL)

tasks = [lambda number=number: (number, os.getpid()) for number in range(7)]
tasks += {"none": [], "fail": [fail], "die": [die]}[sys.argv[2]]
made = make_all(tasks, int(sys.argv[1]))
print([number for number, _ in made], len({place for _, place in made}))
"""


def shared(pytestconfig, processes, last="none"):
    """What seven tasks and the last one make in a process of their own: what it says, and why it failed."""
    command = [sys.executable, "-c", SHARED, str(processes), last]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pytestconfig.rootpath, timeout=60)
    return ended.stdout.strip(), ended.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(("processes", "used"), [(1, 1), (2, 2), (3, 3), (7, 7), (9, 7)])
def test_all_is_made_in_order(pytestconfig, processes, used):
    """Every task once, in their order, by as many processes as there is work for."""
    assert shared(pytestconfig, processes) == (f"[0, 1, 2, 3, 4, 5, 6] {used}", "")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_error_is_the_tasks_own(pytestconfig, processes):
    """What a task raises is raised, wherever it was made."""
    assert shared(pytestconfig, processes, "fail") == ("", "ValueError: not to be drawn")


def test_a_copy_that_is_killed(pytestconfig):
    """It is said, and nothing hangs."""
    died = "ChildProcessError: a process that drew a part of it has died"
    assert shared(pytestconfig, 2, "die") == ("", died)
