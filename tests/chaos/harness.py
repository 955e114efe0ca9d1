"""Real runs of a tiny model, in processes of their own, killed or stopped at numbered points.

A point is a seam: before and after each call to the object store, and each batch. Training and saving are two threads,
so each kind of point is counted by itself, from the start of a process: "after put data, the 17th" is the same place in
every run with the same history, wherever the other thread is by then.
"""

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from job.config_file import ResolvedConfig, load_config
from job.errors import StorageError
from tests.chaos import evidence

PACE = 0.006  # seconds before a step: saves keep up, as they do where a step is real work
VERBS = ("put", "create", "get", "digest", "read", "size", "version", "keys", "delete", "unfinished", "abandon")
warm_context = multiprocessing.get_context("forkserver")
warm_context.set_forkserver_preload(["job.pretrain", "torch._dynamo", "tests.chaos.harness"])
# Who starts a process would ask how all others ended; another thread that asks at that moment is told 255.
multiprocessing.process._cleanup = lambda: None


ENDS = {-9: "killed", 0: "complete", 75: "stopped"}
Point = tuple[str, int]  # its kind, and how many of that kind were there before


@dataclass(frozen=True)
class Plan:
    """What to do to a process.

    Args:
        kill_at: Die at this point.
        stop_at_step: Be asked to stop at the batch of this step.
        bad_data: Batches whose samples do harm, wherever they are met.
        harm: What they do: a `loss` or one `gradient` becomes `value`, or the gradients of a step are a `spike`; the
            `share` is what one of several ranks adds to the loss.
        value: What is not finite.
        bad_state_at: Step in which the optimizer's state gets a `value`, once in a process.
        lost_saves: Steps whose upload fails.
        stop_at: Be asked to stop at this point.
        stall_seconds: How long the process then stands still there.
        signals: How often it is asked.
        kill_after: Die so many seconds after being asked to stop; unset: never.
        grace_seconds: What the process believes it has after being asked to stop.
        pause_at: Stop running (SIGSTOP) at this point, until somebody sends SIGCONT.
        trained: A file to which each step adds the data it is trained on.
    """

    kill_at: Point | None = None
    stop_at_step: int | None = None
    bad_data: range = range(0)
    harm: str = "loss"
    value: float = float("nan")
    bad_state_at: int | None = None
    lost_saves: tuple[int, ...] = ()
    stop_at: Point | None = None
    stall_seconds: float = 0.0
    signals: int = 1
    kill_after: float | None = None
    grace_seconds: float = 30.0
    pause_at: Point | None = None
    trained: Path | None = None


def tiny(run_uri: str, corpus: Path, *more: str) -> ResolvedConfig:
    """One layer, dropout on, two passes per step, 40 steps over more than two epochs."""
    settings = [
        f"run_uri={run_uri}",
        f"data.corpus={corpus}",
        f"data.cache_dir={corpus.parent / 'cache'}",
        "data.tokenizer=byte",
        "data.split=[0.8, 0.1, 0.1]",
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=32",
        "model.context_length=64",
        "model.dropout=0.1",
        "training.batch_size=4",
        "training.micro_batch_size=2",
        "training.max_steps=40",
        "training.eval_every=10",
        "training.eval_batches=2",
        "training.sample_every=none",
        "optimizer.warmup_steps=5",
        "checkpoint.every=5",
        "runtime.device=cpu",
        "runtime.threads=1",
        "observe.metrics_port=none",
        "observe.log_every=5",
        *more,
    ]
    return load_config("quickstart", overrides=settings)


def write_corpus(folder: Path) -> Path:
    """6,000 bytes of text that says something else everywhere: 18 batches of 4 windows an epoch."""
    text = "".join(f"line {n} of {n * n} words, {n % 7} after {n % 11}.\n" for n in range(180))[:6000]
    path = folder / "corpus.txt"
    path.write_text(text)
    return path


def run(
    resolved: ResolvedConfig,
    plan: Plan = Plan(),
    report: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Run the job in a process of its own; its exit code, or minus the signal that ended it.

    Args:
        resolved: The run.
        plan: What to do to the process.
        report: Where to write its points.
        prepare: Called in the process before the job.
    """
    return ended(start(resolved, plan, report, prepare=prepare), plan)


def start(resolved: ResolvedConfig, plan: Plan = Plan(), report: Path | None = None, gate=None, prepare=None):
    """Start the job in a process of its own; with a `gate`, a barrier, it waits there before it claims the run."""
    return launch(_work, plan, resolved, report, gate, prepare)


def launch(work, plan: Plan, *arguments):
    """Start `work(points, *arguments)` in a process of its own."""
    hears, tells = warm_context.Pipe(duplex=False)
    process = warm_context.Process(target=_child, args=(work, plan, tells, dict(os.environ), *arguments))
    process.asked = hears.poll  # whether it was asked to stop, or has ended
    process.start()
    tells.close()
    return process


def ended(process, plan: Plan = Plan()) -> int:
    """Wait for a process, and kill it when its plan says so; its exit code, or minus the signal that ended it."""
    until = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < until:
        process.join(0.05 if plan.kill_after is not None else 300)
        if plan.kill_after is not None and process.asked():
            process.join(plan.kill_after)
            process.kill()
            process.join()
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{plan} did not end")
    evidence.add("processes", ENDS.get(process.exitcode, f"ended with {process.exitcode}"))
    if plan.kill_at and process.exitcode == -9:
        evidence.add("points killed at", plan.kill_at[0])
    return process.exitcode


def _child(work, plan, tells, environ, *arguments):
    """In the child: as the parent's environment is now."""
    be_its_own(environ)
    if plan.kill_at:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # loader workers complain about the death of their parent
    work(Points(plan, lambda: tells.send(True)), *arguments)


def be_its_own(environ) -> None:
    """Let a fork server's child have this environment, and start processes as one does that was started itself."""
    os.environ.clear()
    os.environ.update(environ)
    multiprocessing.set_start_method("fork", force=True)  # else each would start a fork server for its workers


def _work(points, resolved, report, gate, prepare):
    """In the child: run the job with its seams counted."""
    from job import pretrain
    from job.errors import JobError
    from job.infra.logs import configure_logging
    from job.infra.progress import SilentProgress
    from job.infra.signals import StopSignal
    from job.infra.status import RunStatus

    configure_logging("json", "error")
    if prepare:
        prepare()
    count_seams(points)
    if gate is not None:
        claim = pretrain._claim
        pretrain._claim = lambda *arguments: (gate.wait(60), claim(*arguments))[1]
    stop = StopSignal(points.plan.grace_seconds).install()
    code = 0
    try:
        pretrain.pretrain(resolved, stop, SilentProgress(), RunStatus())
    except JobError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = error.exit_code
    if report:
        report.write_text(json.dumps(points.reached))
    os._exit(code)


def count_seams(points) -> None:
    """Put a point at every seam of the job in this process."""
    from job import pretrain
    from job.training import evaluation, learner, reporter, saver, text, trainer

    plan, bad, step, harmed = points.plan, set(), [0], set()
    open_store, batches, backward = pretrain.open_store, text.Text.batches, learner.Learner.backward
    train_step, look_at = trainer.Trainer.train_step, evaluation.Evaluator._sum

    def watched(read, config, first, *arguments):
        beginning = itertools.islice(batches(read, config, plan.bad_data.start, (), False), len(plan.bad_data))
        bad.update(batch.samples for batch in beginning)
        return points.batches(batches(read, config, first, *arguments), first)

    def broken(trained, batch, *arguments):
        if plan.harm == "share" and batch.samples in bad:
            trained = replace(trained, parallel=SpoiltShare(trained.parallel, plan.value))
        loss = backward(trained, batch, *arguments)
        if plan.trained:
            note_data(plan.trained, step[0], batch)
        return do_harm(plan, trained.model, loss) if batch.samples in bad else loss

    def numbered(training):
        step[0] = training.state.step
        time.sleep(PACE)
        if step[0] == plan.bad_state_at and plan not in harmed:
            harmed.add(plan)
            next(iter(training.learner.optimizer.state.values()))["exp_avg"].view(-1)[0] = plan.value
        train_step(training)

    def evaluated(*arguments):
        points.reach("evaluation")
        return look_at(*arguments)

    pretrain.open_store = lambda *arguments: CountedStore(open_store(*arguments), points)
    text.Text.batches, learner.Learner.backward = watched, broken
    trainer.Trainer.train_step, evaluation.Evaluator._sum = numbered, evaluated
    reporter.Reporter.draw = lambda *_: {"report/report.html": b"drawn"}  # drawing takes longer than training
    reporter.Reporter.make_ready = lambda *_: None
    saver._step_back = lambda: None  # on a full machine saves that step back hardly move


def keep_up() -> None:
    """In this process training waits for the save under way when the next is due: none is skipped."""
    from job.training.saver import Saver

    begin = Saver.begin
    Saver.begin = lambda self, *what: (self.wait(), begin(self, *what))[-1]


def do_harm(plan, model, loss):
    """What a bad batch does to the gradients; the loss that it says it has."""
    if plan.harm in ("loss", "share"):
        return loss * plan.value if plan.harm == "loss" else loss
    gradients = [parameter.grad for parameter in model.parameters()]
    if plan.harm == "gradient":
        gradients[-1].view(-1)[0] = plan.value
    else:
        for gradient in gradients:
            gradient.mul_(1e15)
    return loss


class SpoiltShare:
    """What a rank has of a model, but for its share of the loss, which is `value`."""

    def __init__(self, inner, value: float) -> None:
        self._inner, self._value = inner, value

    def total(self, loss):
        return self._inner.total(loss * self._value)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def note_data(path: Path, step: int, batch) -> None:
    """Add a line to the file: the process, the step, and the tokens of each window it is trained on."""
    import torch

    windows = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps([os.getpid(), step, windows]).encode() + b"\n")


class Points:
    """Counts points and does what the plan says at its own; `asked` is called when the process is asked to stop."""

    def __init__(self, plan: Plan, asked=lambda: None) -> None:
        self.plan = plan
        self.reached: list[Point] = []
        self._asked = asked
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, kind: str) -> None:
        with self._lock:
            point = (kind, self._counts[kind])
            if point == self.plan.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._counts[kind] += 1
            self.reached.append(point)
        if point == self.plan.pause_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        if point == self.plan.stop_at:
            self.stop()

    def stop(self) -> None:
        """Ask this process to stop, as often and with as long a pause as the plan has it."""
        self._asked()
        for number in range(self.plan.signals):
            time.sleep(0.2 if number else 0.0)  # sooner, it would be an echo of the one before
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.plan.stall_seconds)

    def batches(self, inner, step):
        for number, batch in enumerate(inner, start=step):
            if number == self.plan.stop_at_step:
                self.stop()
            self.reach("batch")
            yield batch


def points_of(report: Path) -> list[Point]:
    """The points of an undisturbed run, in the order in which they were reached."""
    return [(kind, number) for kind, number in json.loads(report.read_text())]


class CountedStore:
    """A real store with a point before and after each call."""

    def __init__(self, inner, points: Points) -> None:
        self._inner, self._points = inner, points

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name not in VERBS:
            return found

        def counted(key, *arguments):
            folder = key.partition("/")[0]
            self._points.reach(f"before {name} {folder}")
            if name == "put" and any(f"/s{step:012d}" in key for step in self._points.plan.lost_saves):
                raise StorageError(f"put {key}: injected")
            result = found(key, *arguments)
            self._points.reach(f"after {name} {folder}")
            return result

        return counted
