"""What the launcher of several processes does with how they end: real ones, which do nothing but that."""

import pytest

from job.config import RuntimeConfig
from job.infra.launch import launch
from job.infra.place import Crew
from job.infra.relay import Relay

ONE = Crew(processes=1)


def ended(tmp_path, *codes):
    """How workers ended that end with these codes, one each time they are started, and how often they were."""
    notes = tmp_path / "starts"
    notes.touch()
    work = (
        f"file = open({str(notes)!r}, 'r+'); before = len(file.read()); file.write('x'); file.close()\n"
        f"raise SystemExit({codes}[before])"
    )
    ending = launch(ONE, ["-c", work], RuntimeConfig(restarts=len(codes) - 1), Relay())
    return ending.code, len(notes.read_text())


@pytest.mark.parametrize("code", [2, 65, 66, 70, 73, 75, 77, 78])
def test_what_a_retry_repeats_is_not_started_again(tmp_path, code):
    """Started once, though two more starts are allowed, and the code is the launcher's."""
    assert ended(tmp_path, code, 0, 0) == (code, 1)


def test_what_may_pass_is_started_again(tmp_path):
    """Storage that did not answer, a bug, and then it succeeds."""
    assert ended(tmp_path, 69, 1, 0) == (0, 3)


def test_it_is_not_started_forever(tmp_path):
    """After the last start that `runtime.restarts` allows, the worker's code is the launcher's."""
    assert ended(tmp_path, 69, 69) == (69, 2)
