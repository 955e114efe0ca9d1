"""What the tests of faults share: one text, the runs that nothing disturbed, and places in the bucket."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos import evidence
from tests.chaos.cases import SEED
from tests.chaos.harness import Point, points_of, run, tiny, write_corpus
from tests.chaos.outcome import Outcome, outcome
from tests.chaos.weather import Site
from tests.fault_plans import calm
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server

TABLE = {  # file -> the test of RELIABILITY's table that it is, where the file does not count its cases itself
    "test_resume": "R-01",
    "test_resume_s3": "R-01",
    "test_exactly_once": "R-03",
    "test_discovery": "R-04",
    "test_damage": "R-05",
    "test_damaged_state": "R-05",
    "test_two_processes": "R-11",
    "test_two_writers": "R-11",
    "test_retention_histories": "R-12",
    "test_disk_full": "R-15",
    "test_preemption": "R-16",
    "test_not_finite": "R-17",
    "test_rollback": "R-17",
    "test_out_of_memory": "R-18",
    "test_ranks": "R-19",
    "test_resume_elsewhere": "R-20",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests may take hours."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(7200))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note each test that passed as a case, with its seconds."""
    report = yield
    if report.when == "call" and report.passed and item.path.stem in TABLE:
        evidence.case(TABLE[item.path.stem], cases=1, seconds=round(report.duration, 3), seed=SEED)
    return report


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of every run."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[Point]]:
    """The outcome of a run that nothing disturbed, and its points."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(tiny(f"{folder}/run", corpus), report=folder / "points") == 0
    return outcome(f"{folder}/run", folder / "files"), points_of(folder / "points")


@pytest.fixture(scope="session")
def unbroken_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """The outcome of a run in a folder with these settings; each is trained once."""
    known: dict[tuple[str, ...], Outcome] = {}

    def outcome_of(*settings: str) -> Outcome:
        if settings not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            assert run(tiny(f"{folder}/run", corpus, *settings, "checkpoint.every=100000")) == 0
            known[settings] = outcome(f"{folder}/run", folder / "files")
        return known[settings]

    return outcome_of


@pytest.fixture
def through(s3_server: S3Server) -> Iterator[Callable[..., FaultProxy]]:
    """Starts a proxy with a plan; it ends with the test."""
    with ExitStack() as stack:
        yield lambda plan=calm: stack.enter_context(FaultProxy(s3_server, plan))


@pytest.fixture
def site(s3_server: S3Server, s3_environment: S3Server, corpus: Path, tmp_path: Path) -> Callable[..., Site]:
    """A fresh place for a run with these settings."""
    numbers = itertools.count()
    return lambda *settings, pace=0.0: Site(s3_server, corpus, tmp_path / f"site{next(numbers)}", *settings, pace=pace)
