"""A compiled run that is continued on another machine: with the first one's code, and the bits of one never stopped."""

import pytest

from tests.integration.command import World, files

STEPS = 8
SETTINGS = (
    "runtime.compile=on",
    "runtime.compile_cache_uri=shared",
    "checkpoint.every=4",
    "storage.addressing_style=path",
)


def counting_compiler(folder):
    """A C++ compiler that notes which of torch's kernels it is given; torch also asks it what the processor can do."""
    folder.mkdir()
    path = folder / "c++"
    path.write_text(
        f'#!/bin/sh\nfor word in "$@"; do case $word in *.main.cpp) echo "$word" >> {folder}/kernels;; esac; done\n'
        'exec g++ "$@"\n'
    )
    path.chmod(0o755)
    return path


def kernels(compiler):
    noted = compiler.with_name("kernels")
    return len(noted.read_text().split()) if noted.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_machine_goes_on_without_compiling(tmp_path):
    """Not one kernel is compiled again, and the chain is that of a run that was never stopped."""
    one = World.create(tmp_path / "one")
    compiler = counting_compiler(tmp_path / "compiler")
    ending = one.train(*SETTINGS, f"training.max_steps={STEPS // 2}", CXX=str(compiler))
    assert ending.code == 0, ending.stderr
    assert ending.events("compiled code shared")
    assert (compiled := kernels(compiler)) > 0

    other = one.copy(tmp_path / "other")
    for name in files(other.folder / "cache"):
        (other.folder / "cache" / name).unlink()
    ending = other.train(*SETTINGS, f"training.max_steps={STEPS}", CXX=str(compiler))
    assert ending.code == 0, ending.stderr
    assert ending.events("compiled code taken from the shared cache")
    assert kernels(compiler) == compiled

    never = World.create(tmp_path / "never").train(*SETTINGS, f"training.max_steps={STEPS}", CXX=str(compiler))
    assert ending.summary["chain"] == never.summary["chain"]
