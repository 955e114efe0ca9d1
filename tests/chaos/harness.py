"""Real runs of a tiny model, in processes of their own, killed or stopped at numbered points.

A point is a seam: before and after each call to the object store, and each batch. Points are counted from the start
of a process, so "point 17" is the same instant in every run with the same history.
"""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from job.config_file import ResolvedConfig, load_config

VERBS = ("put", "create", "get", "read", "size", "keys", "delete")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["job.pretrain", "torch._dynamo", "tests.chaos.harness"])


@dataclass(frozen=True)
class Plan:
    """What to do to a process: at the point with this number, or at the batch of this step."""

    kill_at: int | None = None
    stop_at_step: int | None = None


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


def run(resolved: ResolvedConfig, plan: Plan = Plan(), report: Path | None = None) -> int:
    """Run the job in a process of its own; its exit code, or minus the signal that ended it."""
    process = _context.Process(target=_work, args=(resolved, plan, report, dict(os.environ)))
    process.start()
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{plan} did not end")
    return process.exitcode


def _work(resolved, plan, report, environ):
    """In the child: run the job with its seams counted."""
    os.environ.update(environ)  # the fork server's is older
    from job import pretrain
    from job.errors import JobError
    from job.infra.logs import configure_logging
    from job.infra.progress import SilentProgress
    from job.infra.signals import StopSignal
    from job.infra.status import RunStatus
    from job.training import finish, text

    configure_logging("json", "error")
    points = Points(plan)
    open_store, batches = pretrain.open_store, text.Text.batches
    pretrain.open_store = lambda *arguments: CountedStore(open_store(*arguments), points)
    text.Text.batches = lambda *arguments: points.batches(batches(*arguments), arguments[2])
    finish.plot_losses = lambda events, target: target.write_bytes(b"drawn") > 0  # drawing takes longer than training
    stop = StopSignal(30.0).install()
    code = 0
    try:
        pretrain.pretrain(resolved, stop, SilentProgress(), RunStatus())
    except JobError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = error.exit_code
    if report:
        report.write_text("\n".join(points.names))
    os._exit(code)


class Points:
    """Counts points and does what the plan says at its own."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names: list[str] = []

    def reach(self, name: str) -> None:
        if len(self.names) == self.plan.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def batches(self, inner, step):
        for number, batch in enumerate(inner, start=step):
            if number == self.plan.stop_at_step:
                os.kill(os.getpid(), signal.SIGTERM)
            self.reach(f"batch {number}")
            yield batch


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
            result = found(key, *arguments)
            self._points.reach(f"after {name} {folder}")
            return result

        return counted
