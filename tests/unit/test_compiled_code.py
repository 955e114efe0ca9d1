"""What was compiled goes to other machines whole or not at all, and is never more than a help."""

import errno

import numpy as np
import pytest
import structlog
from safetensors.numpy import save

from job.errors import AccessError, NotFoundError, StorageError
from job.infra.compiled_code import CompiledCode
from tests.memory_store import MemoryObjectStore

PURPOSE = {"processor": "here", "model": 1}
FILES = {"ab/cab.main.so": b"\x7fELF code", "ab/cab.main.cpp": b"int main;", "fxgraph/x/y": b""}


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
    """Whoever has no more than others puts nothing; what two have compiled apart is united."""
    compile_into(machine("one")).offer()
    (before,) = [store.version(key) for key in store.keys("")]
    other = machine("other")
    other.take()
    other.offer()
    assert [store.version(key) for key in store.keys("")] == [before]

    compile_into(machine("another"), {"cd/new.so": b"more"}).offer()
    third = machine("third")
    third.take()
    assert files(third) == {**FILES, "cd/new.so": b"more"}


def test_who_has_some_takes_nothing(machine):
    """A restart on the same machine goes on with what is there."""
    compile_into(machine("one")).offer()
    other = compile_into(machine("other"), {"cd/own.so": b"own"})

    assert not other.take()
    assert FILES.keys().isdisjoint(files(other))


def test_without_an_address_it_stays_here(tmp_path):
    """Nothing is looked for and nothing is put."""
    code = compile_into(CompiledCode(tmp_path, PURPOSE))
    code.offer()

    assert not code.take()
    assert FILES.items() <= files(code).items()


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


@pytest.mark.parametrize("error", [StorageError("no answer"), AccessError("refused"), NotFoundError("no such bucket")])
def test_a_store_that_fails_is_a_warning(machine, store, monkeypatch, error):
    """Whatever it is that fails: the machine compiles, and the run goes on."""

    def fail(*_):
        raise error

    monkeypatch.setattr(store, "get", fail)
    with structlog.testing.capture_logs() as logs:
        assert not machine("other").take()
        compile_into(machine("one")).offer()

    assert [(line["log_level"], line["reason"]) for line in logs] == [("warning", str(error))] * 2


def test_a_full_disk_is_a_warning(machine, monkeypatch):
    """What does not fit is compiled, or tried again by the next start."""
    compile_into(machine("one")).offer()
    full = OSError(errno.ENOSPC, "full")
    for place in ("pathlib.Path.write_bytes", "job.infra.directory_store.os.fsync"):  # of scratch, of the folder
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_: (_ for _ in ()).throw(full))

            assert not machine("other").take()
