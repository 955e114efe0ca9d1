"""`gpt-job prepare` on hostile input: one clear line, the code of the table, and nothing half-written left as whole."""

import gzip
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from contextlib import suppress
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


def prepare(folder, *corpus, limit=None, impatient=False, **settings):
    """The command in a process of its own, with a cache in `folder`.

    Args:
        limit: Bytes that a file may have.
        impatient: What is said of a server after minutes is said at once.
    """
    values = {"data.cache_dir": folder / "cache", "data.tokenizer": "byte", "data.split": "[0.8,0.1,0.1]", **settings}
    values |= {"data.corpus": json.dumps([str(entry) for entry in corpus]), "model.context_length": 4}
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    environ = {**os.environ, "NO_PROXY": "127.0.0.1", "TERMINATION_LOG": str(folder / "ending")}

    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = subprocess.run(
        [sys.executable, "-c", (IMPATIENT if impatient else "") + MEASURED, "prepare", "--json", *words],
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


IMPATIENT = """
from job.data import download
download.BACKOFF, download.PATIENCE = 0.0, 0.3
"""
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
    assert said.memory < 256


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


SERVED = {
    "an endless redirect": ("", Plan(location="/a.txt"), 65, "more than 5 redirects"),
    "a redirect to a file": ("", Plan(location="file:///etc/hostname"), 65, "neither http nor https"),
    "absent": ("", Plan(status=404), 66, "404"),
    "refused": ("", Plan(status=403), 77, "403"),
    "broken for good": ("", Plan(status=503), 69, "503"),
    "another hash": ("#sha256=" + "0" * 64, Plan(b"text"), 65, f"expected sha256 {'0' * 64}, got"),
    "packed on the way": ("", Plan(b"text", headers={"Content-Encoding": "gzip"}), 65, "sent as gzip"),
    "too long": ("", Plan(b"text" * 100_000), 65, "400000 bytes or more, but data.max_bytes=300000"),
    "cut short": ("", Plan(b"text" * 9000, cut_after=[0] * 99), 69, "5 attempts"),
}


@pytest.mark.parametrize("name", SERVED)
def test_bad_servers(tmp_path, name):
    """Whatever a server does ends with its code and one line that names the address, and leaves nothing whole."""
    pin, plan, code, message = SERVED[name]
    with serving() as server:
        server.plans["/a.txt"] = plan
        said = prepare(tmp_path, server.url("/a.txt") + pin, impatient=True, **{"data.max_bytes": 300_000})

    assert (said.code, whole(tmp_path)) == (code, [])
    assert f"{server.url('/a.txt')}: " in said.reason
    assert message in said.reason
    assert "Traceback" not in said.errors


@pytest.mark.parametrize("after", [0, 300])
def test_a_server_that_stalls(tmp_path, after):
    """A server that takes the request and says nothing, or stops in the middle, is 69 within its time."""
    with socket.create_server(("127.0.0.1", 0)) as stalling:
        threading.Thread(target=stall, args=(stalling, after), daemon=True).start()
        said = prepare(tmp_path, f"http://127.0.0.1:{stalling.getsockname()[1]}/a.txt", impatient=True)

    assert (said.code, whole(tmp_path)) == (69, [])
    assert "/a.txt: " in said.reason
    assert "attempts)" in said.reason


def stall(server, after):
    """Take connections; of an answer of 4,000 bytes send so many, and then nothing."""
    kept = []
    with suppress(OSError):
        while True:
            kept.append(server.accept()[0])
            if after:
                kept[-1].recv(1 << 16)
                kept[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n" + b"x" * after)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gopher://host/a.txt", "gopher:// is none of"),
        ("https://me:CANARY@host/a.txt", "credentials in an address"),
        ("https://host/a.exe?key=CANARY", "https://host/a.exe: the format is told by the name"),
    ],
)
def test_bad_addresses(tmp_path, entry, message):
    """An address that cannot be one is 78 before anything is asked for, and no secret in it is repeated."""
    said = prepare(tmp_path, entry)

    assert said.code == 78
    assert message in said.reason
    assert "CANARY" not in said.errors


def test_a_full_disk_while_pulling(tmp_path):
    """When a download does not fit: 69, nothing that looks whole; with room again it goes on where it was."""
    content = b"text " * 100_000
    with serving() as server:
        server.plans["/a.txt"] = Plan(content)
        said = prepare(tmp_path, server.url("/a.txt"), limit=300_000, impatient=True)
        assert (said.code, whole(tmp_path)) == (69, [])
        assert "write " in said.reason
        server.requests.clear()
        assert prepare(tmp_path, server.url("/a.txt")).facts["bytes"] == len(content)

    assert server.requests[0][1]["Range"] == "bytes=300000-"


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
