"""Promise 1 on a real S3 server: killed at numbered points and continued = never stopped, bit for bit."""

import random

import pytest

from job.config import StorageConfig
from tests.chaos.harness import Plan, points_of, run, tiny
from tests.chaos.outcome import outcome
from tests.chaos.test_resume import SEED, chosen_points

PATH = StorageConfig(addressing_style="path")


@pytest.fixture
def on_s3(s3_server, s3_environment, corpus):
    def resolved():
        return tiny(s3_server.fresh_uri(), corpus, "storage.addressing_style=path", "checkpoint.every=10")

    return resolved


@pytest.fixture
def expected(corpus, tmp_path):
    """The outcome of the unbroken run in a folder."""
    run(tiny(f"{tmp_path}/run", corpus, "checkpoint.every=10"))
    return outcome(f"{tmp_path}/run", tmp_path / "expected")


@pytest.mark.parametrize("most", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_on_s3(on_s3, expected, tmp_path, most):
    """So many SIGKILLs at numbered points, several in a run: every run ends equal to the unbroken one."""
    first = on_s3()
    assert run(first, report=tmp_path / "points") == 0
    reached = points_of(tmp_path / "points")
    pick = random.Random(SEED)
    points = chosen_points(reached, most)
    pick.shuffle(points)
    outcomes, kills = [outcome(first.config.run_uri, tmp_path / "first", PATH)], 0
    while kills < most:
        resolved, code, point = on_s3(), -9, points.pop() if points else pick.choice(reached)
        while code == -9:
            code = run(resolved, Plan(kill_at=point if kills < most else None))
            kills += code == -9
            point = pick.choice(reached[: len(reached) // 2])
        outcomes.append(outcome(resolved.config.run_uri, tmp_path / f"after{kills}", PATH))

    assert outcomes == [expected] * len(outcomes)


def test_a_clean_stop_on_s3(on_s3, expected, tmp_path):
    """Stopped with SIGTERM, continued, stopped and continued: equal to the unbroken run."""
    resolved = on_s3()
    codes = [run(resolved, Plan(stop_at_step=step)) for step in (7, 23)] + [run(resolved)]

    assert codes == [75, 75, 0]
    assert outcome(resolved.config.run_uri, tmp_path / "files", PATH) == expected
