"""What was compiled goes to other machines whole or not at all, and is never more than a help."""

import numpy as np
import pytest
import structlog
from safetensors.numpy import save

from job.errors import StorageError
from job.infra.compiled_code import KEPT_IN, CompiledCode
from tests.memory_store import MemoryObjectStore

PURPOSE = {"processor": "here", "model": 1}
FILES = {"ab/cab.main.so": b"\x7fELF code", "ab/cab.main.cpp": b"int main;", "fxgraph/x/y": b""}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    """Nobody has told torch where to keep code."""
    monkeypatch.delenv(KEPT_IN, raising=False)


@pytest.fixture
def store():
    return MemoryObjectStore()


@pytest.fixture
def machine(tmp_path, store):
    """A machine's code for a purpose; machines have nothing in common but the store."""
    return lambda name, purpose=PURPOSE: CompiledCode(tmp_path / name, purpose, store)


def compile_into(code, files=FILES):
    """Leave the files as torch would, with its locks and what it has not finished."""
    for name, content in {**files, "locks/a.lock": b"", "ab/cab.1.2.tmp": b"half"}.items():
        (code.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (code.folder / name).write_bytes(content)
    return code


def files(code):
    return {str(path.relative_to(code.folder)): path.read_bytes() for path in code.folder.rglob("*") if path.is_file()}


def test_another_machine_takes_what_one_has_compiled(machine):
    """Every file under its name, without locks and without what was not finished."""
    compile_into(machine("one")).offer()
    other = machine("other")
    other.take()

    assert files(other) == FILES


def test_each_purpose_has_its_own(machine):
    """Code for one processor, version or shape is not given to another, and not kept in the same folder."""
    compile_into(machine("one")).offer()
    other = machine("other", {**PURPOSE, "processor": "elsewhere"})
    other.take()

    assert files(other) == {}
    assert machine("one").folder != machine("one", {**PURPOSE, "model": 2}).folder


def test_only_what_is_new_is_shared(machine, store):
    """Whoever took everything puts nothing; whoever compiled more puts it all."""
    compile_into(machine("one")).offer()
    (before,) = [store.version(key) for key in store.keys("")]
    other = machine("other")
    other.take()
    other.offer()
    assert [store.version(key) for key in store.keys("")] == [before]

    more = {**FILES, "cd/new.so": b"more"}
    compile_into(other, more).offer()
    third = machine("third")
    third.take()
    assert files(third) == more


def test_without_an_address_it_stays_here(tmp_path):
    """Nothing is looked for and nothing is put."""
    code = compile_into(CompiledCode(tmp_path, PURPOSE))
    code.take()
    code.offer()

    assert FILES.items() <= files(code).items()


def test_who_says_where_torch_keeps_code_is_heard(monkeypatch, tmp_path):
    """torch's own variable names the folder itself."""
    monkeypatch.setenv(KEPT_IN, str(tmp_path / "named"))

    assert CompiledCode(tmp_path / "cache", PURPOSE).folder == tmp_path / "named"


def cut(content):
    return content[:-1]


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def lead_elsewhere(content):
    return save({"../../escaped.so": np.zeros(1, np.uint8)}, {"sha256": ""})


def be_something_else(content):
    return b"no pack"


@pytest.mark.parametrize("damage", [cut, flip, lead_elsewhere, be_something_else])
def test_a_damaged_pack_is_passed_over(damage, machine, store, tmp_path):
    """One warning says what is wrong, nothing is written, and what is compiled instead takes its place."""
    compile_into(machine("one")).offer()
    (key,) = store.keys("")
    store.put(key, [damage(store.read(key))])
    other = machine("other")
    with structlog.testing.capture_logs() as logs:
        other.take()

    assert [line["log_level"] for line in logs] == ["warning"]
    assert files(other) == {}
    assert not list(tmp_path.rglob("escaped.so"))
    compile_into(other).offer()
    third = machine("third")
    third.take()
    assert files(third) == FILES


def test_a_store_that_fails_is_a_warning(machine, store, monkeypatch):
    """The machine compiles, and the run goes on."""

    def fail(*_):
        raise StorageError("no answer")

    code = compile_into(machine("one"))
    for name in ("get", "put"):
        monkeypatch.setattr(store, name, fail)
    with structlog.testing.capture_logs() as logs:
        code.take()
        code.offer()

    assert [(line["log_level"], line["reason"]) for line in logs] == [("warning", "no answer")] * 2
