"""What is said of an evaluation, where somebody looks."""

import pytest
import structlog
from prometheus_client import CollectorRegistry

from job.checkpoint.events import EventLog
from job.config import TrainingConfig
from job.infra.health import Pulse
from job.infra.metrics import Metrics
from job.infra.progress import SilentProgress
from job.infra.status import RunStatus
from job.training.evaluation import SplitLoss
from job.training.narrator import Channels, Narrator
from job.training.timetable import Timetable
from tests.unit.report_support import VERDICT


@pytest.fixture
def narrator(tmp_path):
    channels = Channels(Metrics(CollectorRegistry()), Pulse(), SilentProgress(), RunStatus())
    timetable = Timetable(TrainingConfig(batch_size=2, max_steps=90), 18)
    return Narrator(channels, EventLog(tmp_path / "events.jsonl", [], 1), timetable, 512, kept_here=True)


def said_of(narrator, step, environment):
    """The log line of an evaluation at `step`."""
    narrator.started(0, environment, attempt=1)
    losses = {"train": SplitLoss(2.9, 512, 4.0), "validation": SplitLoss(6.15, 512, 4.0)}
    with structlog.testing.capture_logs() as lines:
        narrator.evaluated(step, losses, 1.0)
    return lines[-1]


def test_the_published_value_stands_beside_ours(narrator):
    """Step 46 of the book's own work: our 6.15, and the book's 6.179."""
    said = said_of(narrator, 46, VERDICT)

    assert (said["validation_loss"], said["book"]) == (6.15, 6.179)


@pytest.mark.parametrize(("step", "environment"), [(45, VERDICT), (46, {}), (46, {**VERDICT, "corpus": {}})])
def test_where_nothing_was_published_nothing_is_compared(narrator, step, environment):
    """A step that the book does not have, and work that is not the book's."""
    assert "book" not in said_of(narrator, step, environment)


def test_the_time_of_each_phase_is_told_at_the_end(narrator):
    """`run ended` holds the seconds of every phase that there was."""
    narrator.started(0, {}, attempt=1)
    narrator.training(0)
    narrator.phase("evaluating", 2, "windows")
    narrator.ended(0, "complete")

    assert {"training", "evaluating"} <= narrator.events.events[-1]["phases"].keys()
