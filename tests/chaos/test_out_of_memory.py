"""Memory that is not there: a save is lost, anything else ends the process at once with the cause, and it continues.

The limits are real (RLIMIT_AS and RLIMIT_DATA at the moment that is tested, a small tmpfs in place of /dev/shm); the
model is large enough for its tensors to need memory of their own.
"""

import ctypes
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.chaos.commands import train
from tests.chaos.outcome import outcome
from tests.integration.command import ROOT, World, assignments

LARGE = ("model.n_embd=256", "training.max_steps=12", "training.eval_batches=32", "checkpoint.every=4")
BROAD = ("training.batch_size=64", "training.micro_batch_size=64", "training.max_steps=6")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h: what is larger is given back to the kernel; arenas of threads
WIDE = ("model.n_embd=256", "model.n_layer=6", "training.batch_size=64", "training.micro_batch_size=64")
# No more address space than what the imports have taken and so many MiB; arenas of threads would take 64 of them each.
ROOM = 300
CRAMPED = (
    "-c",
    "import resource, job.cli, job.pretrain, torch._dynamo\n"
    "from pathlib import Path\n"
    f"limit = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + ({ROOM} << 20)\n"
    "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); job.cli.main(prog_name='gpt-job')",
)
OUT_OF_MEMORY = 1
PATIENCE = 30.0  # seconds within which a process has to end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The outcome of a run with all the memory that it wants."""
    world = World.create(tmp_path_factory.mktemp("unbroken"))
    assert train(world, *LARGE).code == 0
    return outcome(f"{world.run}", world.folder / "files")


@contextmanager
def no_more_memory():
    """Inside the block the kernel gives this process neither address space nor pages for it."""
    before = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
    for kind, (_, hard) in before.items():
        resource.setrlimit(kind, (1 << 20, hard))
    try:
        yield
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)


def none_for(owner, name, calls):
    """Let `owner.name` find no new memory in these of its calls."""
    from job.training import numerics

    numerics.keep_freed_memory = lambda: False  # else it would do with what was freed before,
    malloc = ctypes.CDLL(None)  # and what it holds for threads
    assert malloc.mallopt(M_MMAP_THRESHOLD, 64 << 10)
    assert malloc.mallopt(M_ARENA_MAX, 1)
    inner, number = getattr(owner, name), [0]

    def limited(*arguments):
        number[0] += 1
        if number[0] not in calls:
            return inner(*arguments)
        with no_more_memory():
            return inner(*arguments)

    setattr(owner, name, limited)


def in_staging():
    from job.training import snapshot

    none_for(snapshot.HostMemory, "copy", {1, 2})


def in_loading_the_model():
    from job.training import state

    none_for(state, "StoredTensors", {1})


def in_loading_the_optimizer():
    from job.training import handout

    none_for(handout, "fill_optimizer", {1})


def in_opening_the_model():
    from job.training import tensors

    def no_room(path, **_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))

    tensors.safe_open = no_room


def in_evaluation():
    from job.training import evaluation

    none_for(evaluation.Evaluator, "_sum", {3})


def in_a_step():
    from job.training import learner

    none_for(learner.Learner, "backward", {9})


def a_worker_is_killed():
    from job.training import text

    batches = text.Text.batches

    def deadly(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == 9:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            yield batch

    text.Text.batches = deadly


def test_no_memory_for_a_copy_costs_a_save(unbroken, tmp_path):
    """Two snapshots find no memory: both saves are lost and counted, and the run goes on to the same end."""
    world = World.create(tmp_path)
    ending = train(world, *LARGE, before=in_staging)
    lost = [(event["reason"], event["in_a_row"]) for event in world.history() if event["event"] == "checkpoint failed"]

    assert ending.codes == {0}
    assert lost == [("memory", 1), ("memory", 2)]
    assert 'pretrain_checkpoint_failures_total{reason="memory"} 2.0' in world.metrics()
    assert outcome(f"{world.run}", world.folder / "files") == unbroken


@pytest.mark.parametrize("where", [in_evaluation, in_a_step], ids=lambda where: where.__name__)
def test_no_memory_while_training_ends_the_process(unbroken, tmp_path, where):
    """An allocation that fails ends the process with 1 and the cause, at once, and the next one continues equal."""
    world, started = World.create(tmp_path), time.monotonic()
    ending = train(world, *LARGE, before=where)

    assert time.monotonic() - started < PATIENCE
    assert ending.codes == {OUT_OF_MEMORY}
    assert ending.log[-1]["reason"].startswith("out of memory: ")
    assert train(world, *LARGE).code == 0
    assert outcome(f"{world.run}", world.folder / "files") == unbroken


def test_what_is_advised_fits(tmp_path):
    """No room for a step: told with what was asked, what there is, and a setting that fits, at most with a second."""
    world, words = World.create(tmp_path), assignments(*WIDE, "training.max_steps=2", "training.eval_batches=1")
    tried = [64]
    while (ending := world.gpt_job("train", *words, launcher=CRAMPED, MALLOC_ARENA_MAX="1")).code:
        said = re.fullmatch(
            r"out of memory: (?:you tried to allocate \d+ bytes|no room for another thread).*; (\d+) MiB of (\d+) MiB "
            r"are free; (\d+) sequences at once take about (\d+) MiB: start again with --set "
            r"training\.micro_batch_size=(\d+)",
            ending.reason,
        )
        assert said, ending.reason
        free, total, now, asked, fitting = map(int, said.groups())
        assert ending.codes == {OUT_OF_MEMORY}
        assert free < total <= ROOM
        assert (now, fitting < now) == (tried[-1], True)
        assert asked > total or len(tried) > 1
        tried.append(fitting)
        words += ["--set", f"training.micro_batch_size={fitting}"]

    assert 2 <= len(tried) <= 3
    assert ending.summary["step"] == 2


@pytest.mark.parametrize(
    "where", [in_opening_the_model, in_loading_the_model, in_loading_the_optimizer], ids=lambda where: where.__name__
)
def test_no_memory_to_load_a_checkpoint_is_no_fault_of_it(unbroken, tmp_path, where):
    """A checkpoint that there is no memory to load is not called damaged: the process ends, the next one uses it."""
    world = World.create(tmp_path)
    assert train(world, *LARGE, before=in_a_step).codes == {OUT_OF_MEMORY}
    assert world.saved()
    ending = train(world, *LARGE, before=where)

    assert ending.codes == {OUT_OF_MEMORY}
    assert ending.log[-1]["reason"].startswith("out of memory: ")
    assert not ending.events("checkpoint rejected, the one before it is tried")
    assert train(world, *LARGE).code == 0
    assert outcome(f"{world.run}", world.folder / "files") == unbroken


def test_a_killed_loader_worker_ends_the_process(unbroken, tmp_path):
    """When the kernel takes a worker the process ends with 1 and says what to do, and the next one continues equal."""
    world, started = World.create(tmp_path), time.monotonic()
    ending = train(world, *LARGE, "data.workers=2", before=a_worker_is_killed)

    assert time.monotonic() - started < PATIENCE
    assert ending.codes == {OUT_OF_MEMORY}
    assert "a loader worker died" in ending.log[-1]["reason"]
    assert train(world, *LARGE, "data.workers=2").code == 0
    assert outcome(f"{world.run}", world.folder / "files") == unbroken


def with_shared_memory(size, words):
    """A command line in which /dev/shm holds so many KiB."""
    mount = f'mount -t tmpfs -o size={size}k tmpfs /dev/shm && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount, "sh", *words]


def can_mount():
    words = with_shared_memory(4, ["true"])
    return shutil.which("unshare") and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no user namespaces here")
@pytest.mark.parametrize("size", [4, 48], ids=["for no queue", "for no batch"])
def test_full_shared_memory_ends_the_process(tmp_path, size):
    """With a /dev/shm too small for the loader's workers the process ends with 1 and says which memory it lacks."""
    world = World.create(tmp_path)
    words = [sys.executable, "-m", "job", "train", "--config", "run.toml", *assignments(*BROAD, "data.workers=2")]
    ended = subprocess.run(
        with_shared_memory(size, words),
        cwd=world.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    said = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]

    assert (ended.returncode, said[-1]["code"]) == (OUT_OF_MEMORY, OUT_OF_MEMORY)
    assert "/dev/shm" in said[-1]["reason"]
    assert train(world, *BROAD).code == 0
