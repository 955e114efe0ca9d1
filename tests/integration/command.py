"""`gpt-job` in a process of its own: what it says on the way, how it ends, and a small world to run it in."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, Self, TypeVar

from job.config_file import render_toml
from tests.chaos.harness import keep_up, tiny, write_corpus
from tests.warm import WarmProcess

Case, Result = TypeVar("Case"), TypeVar("Result")
Launcher = tuple[str, ...] | None

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0  # seconds, after which a process is killed and whoever waits for it fails
SLOW = ("training.sample_every=1", "training.sample_tokens=100")  # long enough between steps to be met there
SUMMARY = {"status", "step", "train_loss", "val_loss", "tokens", "seconds", "run_uri", "checkpoint", "chain"}
_FOREIGN = ("AWS_", "GPT_JOB_", "KUBERNETES_", "TIKTOKEN_")

REAL = ("-m", "job")
# Retries follow each other at once: what is left of an hour's patience is what it ends in.
IMPATIENT = ("-c", "import time; time.sleep = lambda seconds: None; import job.cli; job.cli.main(prog_name='gpt-job')")
# Each checkpoint that is due is saved: on a busy machine one that came too soon after another would be skipped.
UNHURRIED = (
    "-c",
    "from job.training.saver import Saver; begin = Saver.begin\n"
    "Saver.begin = lambda self, *what: (self.wait(), begin(self, *what))[-1]\n"
    "import job.cli; job.cli.main(prog_name='gpt-job')",
)
# A file system without hard links, as some network and FUSE mounts are: nothing can be published conditionally.
UNLINKED = (
    "-c",
    "import errno, os\n"
    "def refuse(*names, **_): raise OSError(errno.EPERM, 'no links here')\n"
    "os.link = refuse\n"
    "import job.cli; job.cli.main(prog_name='gpt-job')",
)


@dataclass(frozen=True)
class Ending:
    """How a command ended, in every place that says so.

    Args:
        termination: What `$TERMINATION_LOG` holds; empty when it was not written.
    """

    code: int
    stdout: str
    stderr: str
    termination: Mapping[str, Any]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of stderr that are JSON."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    @property
    def codes(self) -> set[int | None]:
        """Exit code, the termination message's and the last log line's: one when they agree."""
        return {self.code, self.termination.get("code"), self.log[-1].get("code") if self.log else None}

    @property
    def reason(self) -> str:
        """Why, as the termination message has it."""
        return str(self.termination["reason"])

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON in the last line of stdout."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines that say `name`."""
        return [line for line in self.log if line["event"] == name]


class Job:
    """A command under way; leaving the block kills what is left of it.

    Args:
        launcher: What a new Python is started with; unset: the command is a copy of a process that has imported torch.
        before: Called in such a copy before the command.
    """

    def __init__(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        environ: Mapping[str, str],
        launcher: Launcher = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._notes = Path(tempfile.mkdtemp(prefix="ended-", dir=folder))
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        environ = {**own, **self._environ(), **environ}
        stdout = self._notes / "stdout"
        self.process: WarmProcess | subprocess.Popen[str]
        if launcher is None:
            self.process = WarmProcess(arguments, folder, environ, stdout, before)
        else:
            words = [sys.executable, *launcher, *arguments]
            with stdout.open("wb") as file:
                self.process = subprocess.Popen(
                    words, cwd=folder, env=environ, stdout=file, stderr=subprocess.PIPE, text=True
                )
        assert self.process.stderr
        self._stderr, self._said = self.process.stderr, ""
        self._deadline = Timer(DEADLINE, self.process.kill)
        self._deadline.daemon = True
        self._deadline.start()

    def _environ(self) -> dict[str, str]:
        termination = str(self._notes / "termination")
        return {"PYTHONPATH": str(ROOT), "TERMINATION_LOG": termination, "NO_PROXY": "127.0.0.1"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        self.process.kill()
        with self.process:
            pass

    def until(self, event: str, **facts: object) -> dict[str, Any]:
        """The next log line that says `event` with these facts."""
        for line in self._stderr:
            self._said += line
            found: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if found.get("event") == event and facts.items() <= found.items():
                return found
        raise AssertionError(f"ended without {event!r} {facts}:\n{self._said}")

    def ending(self) -> Ending:
        """How it ended, once it has."""
        self._said += self._stderr.read()
        code, termination = self.process.wait(), self._notes / "termination"
        said = json.loads(termination.read_bytes()) if termination.exists() else {}
        return Ending(code, (self._notes / "stdout").read_text(), self._said, said)


@dataclass(frozen=True)
class World:
    """A folder with a corpus, a config (the tiny model of the chaos tests), a cache, and the run that grows in it.

    Every path in it is relative, so a copy is a world of its own with the same run.
    """

    folder: Path
    environ: Mapping[str, str]

    @classmethod
    def create(cls, folder: Path, environ: Mapping[str, str] | None = None) -> Self:
        """A world in which nothing has happened."""
        folder.mkdir(parents=True, exist_ok=True)
        write_corpus(folder)
        (folder / "run.toml").write_text(render_toml(tiny("run", Path("corpus.txt"), "observe.report=false")))
        return cls(folder, environ or {})

    def copy(self, folder: Path) -> "World":
        """The same world again, as it is now."""
        shutil.copytree(self.folder, folder / "world")
        return World(folder / "world", self.environ)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def corpus(self) -> Path:
        """The run's text."""
        return self.folder / "corpus.txt"

    def job(self, command: str, *arguments: str, launcher: Launcher = None, **environ: str) -> Job:
        """Start a command with this world's config."""
        words = (*command.split(), "--config", "run.toml", *arguments)
        return Job(self.folder, words, {**self.environ, **environ}, launcher)

    def gpt_job(self, command: str, *arguments: str, launcher: Launcher = None, **environ: str) -> Ending:
        """Run a command with this world's config to its end."""
        with self.job(command, *arguments, launcher=launcher, **environ) as job:
            return job.ending()

    def training(self, *settings: str, launcher: Launcher = None, **environ: str) -> Job:
        """Start `train` with more settings."""
        return self.job("train", *assignments(*settings), launcher=launcher, **environ)

    def train(self, *settings: str, **environ: str) -> Ending:
        """Run `train` with more settings to its end, every checkpoint that is due saved."""
        words = ("train", "--config", "run.toml", *assignments(*settings))
        with Job(self.folder, words, {**self.environ, **environ}, before=keep_up) as job:
            return job.ending()

    def records(self) -> list[dict[str, Any]]:
        """The commit log."""
        return [json.loads(path.read_bytes()) for path in sorted((self.run / "log").glob("*.json"))]

    def saved(self) -> list[int]:
        """Steps of all checkpoints that were ever committed."""
        return [record["step"] for record in self.records() if record["kind"] == "checkpoint"]

    def standing(self) -> list[int]:
        """Steps of the checkpoints that retention has left."""
        pruned = {seq for record in self.records() if record["kind"] == "prune" for seq in record["pruned"]}
        records = [record for record in self.records() if record["kind"] == "checkpoint"]
        return [record["step"] for record in records if record["seq"] not in pruned]

    def history(self) -> list[dict[str, Any]]:
        """The run's `events.jsonl`."""
        return [json.loads(line) for line in (self.run / "events.jsonl").read_bytes().splitlines()]

    def metrics(self) -> str:
        """The run's `metrics.prom`."""
        return (self.run / "metrics.prom").read_text()


def two_at_a_time(start: Callable[[Case], Result], cases: Mapping[str, Case]) -> dict[str, Result]:
    """What `start` makes of each case, by name: most of a command is the import of torch, and most machines can two."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(start, cases.values()), strict=True))


def assignments(*settings: str) -> list[str]:
    """Settings as flags."""
    return [word for setting in settings for word in ("--set", setting)]


def files(folder: Path) -> dict[str, bytes]:
    """Everything below `folder`, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def get(url: str) -> tuple[int, str]:
    """Status and body of an answer from this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def flip_bit(path: Path) -> None:
    """Damage a file in its middle, in a way that leaves its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
