"""`gpt-job prepare` on hostile input: one clear line, the code of the table, and nothing half-written left as whole."""

import gzip
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from tests.unit.data_support import Plan, serving

GOOD = b'{"text": "good"}\n'


@dataclass
class Said:
    """What the command ended with."""

    code: int
    reason: str
    facts: dict
    errors: str
    memory: int  # MiB


def prepare(folder, *corpus, limit=None, **settings):
    """The command in a process of its own, with a cache in `folder`; `limit`: bytes that a file may have."""
    values = {"data.cache_dir": folder / "cache", "data.tokenizer": "byte", "data.split": "[0.8,0.1,0.1]", **settings}
    values |= {"data.corpus": json.dumps([str(entry) for entry in corpus]), "model.context_length": 4}
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    environ = {**os.environ, "TERMINATION_LOG": str(folder / "ending")}

    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = subprocess.run(
        [sys.executable, "-c", f"{MEASURED}", "prepare", "--json", *words],
        capture_output=True,
        text=True,
        env=environ,
        preexec_fn=limited,
        check=False,
        timeout=300,
    )
    *rest, memory = run.stderr.splitlines()
    last = json.loads(rest[-1]) if rest else {}
    facts = json.loads(run.stdout) if run.stdout else {}
    return Said(run.returncode, last.get("reason", ""), facts, run.stderr, int(memory))


MEASURED = """
import sys
sys.argv[0] = "gpt-job"
from job.cli import main
try:
    main()
finally:
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(line.split()[1]) >> 10, file=sys.stderr)
"""


def bomb(pack):
    return lambda path: path.write_bytes(pack(bytes(1 << 28)))


def long_line(size):
    """A line of that many bytes, which takes no room."""

    def write(path):
        with path.open("wb") as file:
            file.write(GOOD + b'{"text": "')
            file.truncate(size)

    return write


def without_text(path):
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)


BAD = {
    "truncated gzip": ("a.txt.gz", lambda path: path.write_bytes(gzip.compress(b"text " * 9999)[:-20]), "cut short"),
    "gzip bomb": ("a.txt.gz", bomb(lambda content: gzip.compress(content, 1)), "more than 200 to 1 is refused"),
    "zstd bomb": ("a.txt.zst", bomb(zstandard.compress), "more than 200 to 1 is refused"),
    "wrong UTF-8": ("a.txt", lambda path: path.write_bytes(b"text \xff"), "not UTF-8 at byte 5"),
    "a line of 140 MB": ("a.jsonl", long_line(140_000_000), "line 2: longer than 134217728 bytes"),
    "a line of a gigabyte": ("a.jsonl", long_line(1 << 30), "line 2: longer than 134217728 bytes"),
    "not JSON": ("a.jsonl", lambda path: path.write_bytes(GOOD * 2 + b"{not json}\n"), "line 3: not JSON"),
    "no text column": ("a.parquet", without_text, "no column 'text' (data.text_field); it has body"),
    "all empty": ("a.txt", lambda path: path.write_bytes(b""), "the corpus is empty"),
}


SLOW = {"a line of a gigabyte"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BAD])
def test_bad_files(tmp_path, name):
    """65, one line that names the file, no traceback, no token files, and less memory than the bomb would take."""
    file, write, message = BAD[name]
    write(tmp_path / file)
    said = prepare(tmp_path, tmp_path / file)

    assert said.code == 65
    assert said.reason.startswith("DataError")
    assert file in said.reason
    assert message in said.reason
    assert "Traceback" not in said.errors
    assert whole(tmp_path) == []
    assert said.memory < 700


def whole(folder):
    """Whatever in the cache passes for finished."""
    return [path for kind in ("tokens", "content") for path in (folder / "cache" / kind).glob("[!.]*")]


def test_an_empty_file_among_many(tmp_path):
    """An empty file is no document, and no reason to stop."""
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_text("" if number == 7 else f"document {number} " * 20)
    said = prepare(tmp_path, tmp_path / "*.txt")

    assert (said.code, said.facts["files"], said.facts["documents"]) == (0, 60, 59)


def test_bad_lines_by_setting(tmp_path):
    """With data.bad_lines=skip lines without text are counted, named, and passed over."""
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"text": "%040d"}\n' % n for n in range(90)) + b"{no}\n[]\n")
    said = prepare(tmp_path, tmp_path / "a.jsonl", **{"data.bad_lines": "skip"})

    assert (said.code, said.facts["documents"], said.facts["skipped_lines"]) == (0, 90, 2)
    assert "a.jsonl, line 91: not JSON" in said.errors


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [("/round.txt", 65, "more than 5 redirects"), ("/none.txt", 66, "404"), ("/secret.txt", 77, "403")],
)
def test_bad_servers(tmp_path, path, code, message):
    """An endless redirect, an absent and a refused file each have their code, and leave nothing."""
    with serving() as server:
        server.plans = {"/round.txt": Plan(location="/round.txt"), "/secret.txt": Plan(status=403)}
        said = prepare(tmp_path, server.url(path))

    assert (said.code, whole(tmp_path)) == (code, [])
    assert message in said.reason


def test_a_full_disk(tmp_path):
    """When no more can be written: 69, nothing that looks whole; with room again it goes on to the end."""
    (tmp_path / "a.txt").write_text("text " * 100_000)
    said = prepare(tmp_path, tmp_path / "a.txt", limit=100_000)

    assert said.code == 69
    assert "train_000000.bin" in said.reason or "File too large" in said.reason
    assert whole(tmp_path) == []
    assert prepare(tmp_path, tmp_path / "a.txt").facts["tokens"] == 500_000


def test_pickles_are_no_corpus(tmp_path):
    """A name of no known format is refused before anything is read."""
    Path(tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")

    assert prepare(tmp_path, tmp_path / "a.pkl").code == 78
