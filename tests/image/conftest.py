"""Tests of the image: `make image-test`. Without engine or image they are skipped; REQUIRE_DOCKER=1 forbids that."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.engine import Engine, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder drives an engine, and may wait for a container longer than a test of the suite."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.image)


def _present(variable: str) -> str:
    name = os.environ.get(variable, "")
    reason = missing(name) if name else f"{variable} names no image: `make image-test` does"
    if reason and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but {reason}")
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def image() -> str:
    """The job's image."""
    return _present("IMAGE")


@pytest.fixture(scope="session")
def s3_image() -> str:
    """The image of the S3 server."""
    return _present("S3_IMAGE")


@pytest.fixture
def engine(image: str) -> Iterator[Engine]:
    """Starts containers; all that it made is gone after the test."""
    engine = Engine()
    yield engine
    engine.clear()


@pytest.fixture(scope="module")
def shared_engine(image: str) -> Iterator[Engine]:
    """The same for what several tests of a module look at."""
    engine = Engine()
    yield engine
    engine.clear()
