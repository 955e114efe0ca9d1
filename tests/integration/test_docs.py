"""Every block of commands in README.md, typed by a person who has a text, a small run and a bucket.

The commands are the page's own, word for word. What they would take too long for, or need the world for, is made small
or brought near by the environment: settings through `GPT_JOB_SET`, the bucket on a server here, GPT-2 a folder of a
small model, ports free ones. A block is run in a copy of one folder, so that none depends on another.
"""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from job.data.alphabets import ByteTokenizer
from job.data.huggingface_tokenizer import huggingface_files
from tests.documents import ROOT, Block, Command, blocks
from tests.s3_server import S3Server
from tests.unit.data_support import SHARED
from tests.unit.weights_support import model, write_huggingface

DEADLINE = 240.0  # seconds of a command
TEXT = "The quick brown fox jumps. Every effort moves you. Ein Käfer läuft über Straßen. Быстрая лиса. 狐は速い。\n"
BLOCKS = [block for block in blocks("README.md") if block.commands or block.language == "python"]
MADE_BY = "Stop and resume"  # the block that makes the run of all others

SMALL = {
    "data.cache_dir": "cache",
    "observe.metrics_port": "none",
    "observe.report": "false",
    "optimizer.warmup_steps": "0",
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.threads": "1",
    "training.batch_size": "4",
    "training.micro_batch_size": "none",
    "training.max_steps": "6",
    "training.eval_every": "3",
    "training.eval_batches": "1",
    "training.sample_every": "none",
    "checkpoint.every": "3",
}
SHAPE = {
    "model.n_layer": "1",
    "model.n_head": "2",
    "model.n_embd": "16",
    "model.head_size": "none",
    "model.context_length": "32",
}
OWN = {  # what a block gets instead of a small model of characters
    MADE_BY: SMALL | SHAPE | {"training.max_steps": "2000", "training.eval_every": "1000", "checkpoint.every": "250"},
    "GPT-2's weights": SMALL,  # the shape is the weights'
    "Text at scale": SMALL | SHAPE | {"data.tokenizer": "char", "data.split": "[0.8, 0.2]"},  # few documents: no third
    "Offline": SMALL | SHAPE | {"data.stride": "none"},  # its tokenizer is what the block is about
}
LONG = {  # what takes its time; other tests start the same commands in every commit
    "The report": "tests/integration/test_cli.py",
    "Settings": "tests/integration/test_cli.py",
    "Your own bucket": "tests/integration/test_s3_run.py",
    "Serve-test": "tests/integration/test_serve_test.py",
    "Several GPUs and machines": "tests/integration/test_processes.py",
    "From a bigram to a GPT": "tests/integration/test_ladder.py",
    "Bench": "tests/integration/test_bench.py",
}
WORDS = {"gpt2:124M": "weights", "gpu": "2", "8": "2"}  # of command lines; 8 and gpu are numbers of processes

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["job.pretrain", "job.generate", "torch._dynamo", "tests.chaos.harness"])


def _begin(folder: Path, environ: Mapping[str, str], what: list[str] | str, notes: Path) -> None:
    """Be `gpt-job` with these words, or this program, in a process of its own."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{notes}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - the process ends with it
    if isinstance(what, str):
        exec(compile(what, "README.md", "exec"), {"__name__": "__main__"})
        return
    if "--processes" in what:  # the others are started as this one was: from a command line
        os.execv(sys.executable, [sys.executable, "-m", "job", *what])
    from job.cli import main

    main(what, prog_name="gpt-job")


@dataclass
class Typed:
    """A command that was started."""

    process: Any
    notes: Path

    def said(self, event: str) -> dict[str, Any]:
        """The first log line that says `event`, once it is there."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            alive = self.process.is_alive()
            for line in self.stream("stderr").splitlines():
                if line.startswith("{") and line.endswith("}") and json.loads(line)["event"] == event:
                    return json.loads(line)
            assert alive, self.stream("stderr")
            time.sleep(0.01)
        raise AssertionError(f"never said {event!r}: {self.stream('stderr')}")

    def code(self) -> int:
        """How it ended."""
        self.process.join(DEADLINE)
        assert self.process.exitcode is not None, f"still there: {self.stream('stderr')}"
        return self.process.exitcode

    def stream(self, name: str) -> str:
        """What it has written so far."""
        path = Path(f"{self.notes}.{name}")
        return path.read_text() if path.exists() else ""


@dataclass
class Shell:
    """A folder, what is exported in it, and what is answering there."""

    folder: Path
    environ: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)  # of what listens, by what the page calls it
    running: list[Typed] = field(default_factory=list)
    history: list[Typed] = field(default_factory=list)

    def start(self, what: list[str] | str, environ: Mapping[str, str] = MappingProxyType({})) -> Typed:
        """Start `gpt-job` with these words, or a program."""
        notes = self.folder / f"typed-{len(self.history)}"
        process = _context.Process(target=_begin, args=(self.folder, {**self.environ, **environ}, what, notes))
        process.start()
        self.history.append(Typed(process, notes))
        return self.history[-1]

    def listen(self, name: str, event: str, words: list[str]) -> None:
        """Start what answers at `name` until the block ends."""
        self.running.append(self.start(words))
        self.addresses[name] = self.running[-1].said(event)["url"].removeprefix("http://").removesuffix("/metrics")

    def here(self, text: str) -> str:
        """What the page calls something, as it is called here."""
        for name, address in self.addresses.items():
            text = text.replace(name, address)
        return WORDS.get(text, text)

    def type(self, command: Command) -> None:
        """Do as the page says, and hold the end to what it promises."""
        words = [self.here(word) for word in command.words[1:]]
        if command.program == "export":  # of names that a server here gives values
            assert {word.partition("=")[0] for word in words} <= self.environ.keys()
        elif command.program == "curl":
            self.shell("curl", "--fail", "--silent", "--show-error", *words)
        elif command.program == "make":
            self.make(words)
        elif words[0] == "serve":
            self.listen("localhost:8000", "serving", [*words, "--port", "0"])
        else:
            self.finish(self.start(words, command.environ), command.ends_with)

    def finish(self, typed: Typed, expected: int = 0) -> None:
        """Wait for its end; where that is 75, ask for it once there is a checkpoint."""
        if expected == 75:
            typed.said("checkpoint saved")
            os.kill(typed.process.pid, signal.SIGTERM)

        assert typed.code() == expected, typed.stream("stderr")[-3000:]

    def make(self, words: list[str]) -> None:
        """Start what make would, were the job installed in `.venv`."""
        said = self.shell("make", "--dry-run", "-f", str(ROOT / "Makefile"), "-o", ".venv/.installed", *words)
        started = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith(".venv/bin/gpt-job ")]

        assert started
        for line in started:
            self.finish(self.start(line))

    def shell(self, *words: str) -> str:
        """What a program that is not ours prints; its end is 0."""
        ended = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=DEADLINE, check=False
        )

        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def close(self) -> None:
        """Ask what still answers to end, which is no fault of it."""
        for typed in self.running:
            os.kill(typed.process.pid, signal.SIGTERM)

        assert {typed.code() for typed in self.running} <= {0, 75}


def environment(folder: Path, heading: str, more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """What is exported while a block is typed."""
    settings = OWN.get(heading, SMALL | SHAPE | {"data.tokenizer": "char"})
    own = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **own,
        "GPT_JOB_SET": "\n".join(f"{key}={value}" for key, value in settings.items()),
        "NO_PROXY": "*",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TERMINATION_LOG": str(folder / "termination"),
        **more,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The folder of somebody who has followed the page: a text, a run that was stopped and continued, and the rest."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my.txt").write_text(TEXT * 120)
    (folder / "other.txt").write_text("Another text, in the characters of the first.\n" * 60)
    (folder / "questions.txt").write_text("The \nEvery \n")
    (folder / "list.manifest").write_text("my.txt\nlines.jsonl\n")
    lines = [json.dumps({"text": f"line {number} of a text like others"}) for number in range(200)]
    (folder / "lines.jsonl").write_text("\n".join([*lines, '{"no": "text"}\n']))
    write_huggingface(folder / "weights", model(vocab_size=257, n_layer=1, n_head=2, n_embd=8, context_length=16))
    for name, content in huggingface_files(ByteTokenizer(), 16).items():
        (folder / "weights" / name).write_bytes(content)
    (block,) = [block for block in BLOCKS if block.heading == MADE_BY]
    typed = Shell(folder, environment(folder, MADE_BY))
    for command in block.commands:
        typed.type(command)
    shutil.copytree(folder / "runs/mine", folder / "runs/other")
    return folder


@pytest.fixture
def bucket(s3_server: S3Server, prepared: Path) -> Iterator[dict[str, str]]:
    """A bucket called bucket with a text in it; what points boto3 at it."""
    client = s3_server.client()
    client.create_bucket(Bucket="bucket")
    client.upload_file(str(prepared / "my.txt"), "bucket", "crawl/my.txt")
    yield s3_server.environ
    for found in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for key in found.get("Contents", []):
            client.delete_object(Bucket="bucket", Key=key["Key"])
    client.delete_bucket(Bucket="bucket")


def cases() -> list[Any]:
    """A case for each block, the long ones marked."""
    return [
        pytest.param(block, id=block.place, marks=[pytest.mark.slow] if block.heading in LONG else [])
        for block in BLOCKS
        if any(command.elsewhere is None for command in block.commands) and block.heading != MADE_BY
    ]


@pytest.mark.parametrize("block", cases())
def test_the_block_does_what_it_says(block: Block, prepared: Path, tmp_path: Path, request: pytest.FixtureRequest):
    """Every command of the block ends as the page promises, and the program below it runs."""
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    NEEDS.get(block.heading, lambda _: None)(folder)
    more = request.getfixturevalue("bucket") if "s3://" in block.content else {}
    typed = Shell(folder, environment(folder, block.heading, more))
    try:
        prepare(typed, block)
        for command in block.commands:
            if command.elsewhere is None:
                typed.type(command)
        for program in programs(block):
            typed.finish(typed.start(typed.here(program)))
    finally:
        typed.close()


def prepare(typed: Shell, block: Block) -> None:
    """What is there already when a person comes to the block: a job that trains, a server, a run in the bucket."""
    if "localhost:9108" in block.content:
        long = ["train", "--set", "observe.metrics_port=0", "--set", "training.max_steps=1000000"]
        typed.listen("localhost:9108", "metrics endpoint", [*long, "--set", "data.corpus=my.txt"])
    if "--url http://localhost:8000" in block.content:
        typed.listen("localhost:8000", "serving", ["serve", "--run", "runs/mine", "--port", "0"])
    if "--run s3://" in block.content and "run_uri=s3://" not in block.content:
        trained = typed.start(["train", "--set", "run_uri=s3://bucket/runs/first", "--set", "data.corpus=my.txt"])

        assert trained.code() == 0, trained.stream("stderr")


def programs(block: Block) -> list[str]:
    """The programs that follow a block under the same heading, typed while what it started still answers."""
    following = BLOCKS[BLOCKS.index(block) + 1 :]
    return [other.content for other in following[:1] if other.language == "python" and other.heading == block.heading]


def _parquet(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": [f"{number}. {TEXT}" * 5 for number in range(200)]})
    parquet.write_table(table, folder / "crawl.parquet")


def _bpe(folder: Path) -> None:
    (folder / "bpe").mkdir()
    for name in ("vocab.bpe", "encoder.json"):
        if not (SHARED / name).exists():
            pytest.skip(f"{name} is not in {SHARED}")
        shutil.copy(SHARED / name, folder / "bpe")


NEEDS: Mapping[str, Callable[[Path], None]] = {"Text at scale": _parquet, "Offline": _bpe}


def test_every_program_is_run():
    """A Python program of the page follows a block of commands that runs under the same heading."""
    run = [program for block in BLOCKS for program in programs(block)]

    assert run == [block.content for block in BLOCKS if block.language == "python"]


def test_stopping_is_what_the_page_says(prepared):
    """The run that all other blocks look at was stopped once, with a checkpoint, and continued to its end."""
    events = [json.loads(line) for line in (prepared / "runs/mine/events.jsonl").read_text().splitlines()]
    starts = [event["step"] for event in events if event["event"] == "run started"]

    assert starts[0] == 0
    assert 0 < starts[1] < 2000
    assert events[-1]["event"] == "run ended"


@pytest.mark.parametrize(("heading", "path"), LONG.items())
def test_long_blocks_have_tests_in_every_commit(heading, path):
    """Blocks that only the long suite types are started by another file of this suite."""
    source = (ROOT / path).read_text()

    assert [block for block in BLOCKS if block.heading == heading]
    assert re.search(r"^def test_", source, re.MULTILINE)
