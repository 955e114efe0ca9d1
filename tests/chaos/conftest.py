"""What the tests of faults share: one text, the runs that nothing disturbed, and places in the bucket."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.harness import run, tiny, write_corpus
from tests.chaos.outcome import Outcome, outcome
from tests.chaos.weather import Site
from tests.fault_plans import calm
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of every run."""
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def unbroken_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """The outcome of a run in a folder with these settings; each is trained once."""
    known: dict[tuple[str, ...], Outcome] = {}

    def outcome_of(*settings: str) -> Outcome:
        if settings not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            assert run(tiny(f"{folder}/run", text, *settings, "checkpoint.every=100000")) == 0
            known[settings] = outcome(f"{folder}/run", folder / "files")
        return known[settings]

    return outcome_of


@pytest.fixture
def through(s3_server: S3Server) -> Iterator[Callable[..., FaultProxy]]:
    """Starts a proxy with a plan; it ends with the test."""
    with ExitStack() as stack:
        yield lambda plan=calm: stack.enter_context(FaultProxy(s3_server, plan))


@pytest.fixture
def site(s3_server: S3Server, s3_environment: S3Server, text: Path, tmp_path: Path) -> Callable[..., Site]:
    """A fresh place for a run with these settings."""
    numbers = itertools.count()
    return lambda *settings, pace=0.0: Site(s3_server, text, tmp_path / f"site{next(numbers)}", *settings, pace=pace)
