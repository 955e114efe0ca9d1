"""The termination message: one short line of JSON, in the place that Kubernetes reads, or nowhere."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.infra import endings
from job.infra.endings import write_termination


@pytest.fixture
def message(tmp_path):
    return tmp_path / "message"


def end(message, reason="complete", val_loss=1.5, checkpoint="step 10", **environ):
    write_termination(0, reason, 10, val_loss, checkpoint, {"TERMINATION_LOG": str(message), **environ})


def test_the_message_is_one_line_of_json(message):
    """Code, reason, step, validation loss and checkpoint stand in one line."""
    end(message, reason="complete\nand well")

    assert message.read_text().count("\n") == 1
    assert json.loads(message.read_text()) == {
        "code": 0,
        "reason": "complete\nand well",
        "step": 10,
        "val_loss": 1.5,
        "checkpoint": "step 10",
    }


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_becomes_null(message, loss):
    """JSON has no NaN: a loss that is not a number is null."""
    end(message, val_loss=loss)

    assert json.loads(message.read_text(), parse_constant=pytest.fail)["val_loss"] is None


def test_nothing_to_tell_is_null(message):
    """A job that ended before its first step has null for step, loss and checkpoint."""
    write_termination(78, "wrong", None, None, None, {"TERMINATION_LOG": str(message)})

    assert json.loads(message.read_text()) == {
        "code": 78,
        "reason": "wrong",
        "step": None,
        "val_loss": None,
        "checkpoint": None,
    }


def test_a_later_message_replaces_an_earlier_one(message):
    """A shorter message leaves nothing of a longer one behind."""
    end(message, reason="a" * 100)
    end(message, reason="b")

    assert json.loads(message.read_text())["reason"] == "b"


@given(reason=st.text(), repeats=st.integers(1, 2000), checkpoint=st.text())
def test_the_message_fits_in_what_kubernetes_keeps(tmp_path_factory, reason, repeats, checkpoint):
    """Whatever the texts are, the message is whole JSON of less than 4096 bytes."""
    message = tmp_path_factory.getbasetemp() / "message"
    end(message, reason=reason * repeats, checkpoint=checkpoint * repeats)

    assert len(message.read_bytes()) < 4096
    assert json.loads(message.read_bytes())["code"] == 0


def test_a_long_reason_keeps_its_ends(message):
    """Cutting takes the middle: what happened stands first, the cause often last."""
    end(message, reason="first " + "x" * 9000 + " last")

    reason = json.loads(message.read_text())["reason"]
    assert reason.startswith("first ")
    assert reason.endswith(" last")


def test_secrets_do_not_reach_the_message(message):
    """The reason passes the same filter as log lines."""
    end(message, reason="refused s3cret-canary for AKIAIOSFODNN7EXAMPLE", AWS_SECRET_ACCESS_KEY="s3cret-canary")

    assert json.loads(message.read_text())["reason"] == "refused [redacted] for [redacted]"


def test_the_default_place_is_not_created(tmp_path, monkeypatch):
    """Outside Kubernetes, where there is no /dev/termination-log, no such file appears."""
    monkeypatch.setattr(endings, "DEFAULT_PATH", str(tmp_path / "termination-log"))
    write_termination(0, "complete", 1, 1.0, None, {})

    assert list(tmp_path.iterdir()) == []


def test_the_default_place_is_used_where_it_exists(tmp_path, monkeypatch):
    """The file that kubelet has put there is written."""
    place = tmp_path / "termination-log"
    place.touch()
    monkeypatch.setattr(endings, "DEFAULT_PATH", str(place))
    write_termination(0, "complete", 1, 1.0, None, {})

    assert json.loads(place.read_text())["reason"] == "complete"


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path):
    """A folder in the place of the file ends nothing."""
    write_termination(0, "complete", 1, 1.0, None, {"TERMINATION_LOG": str(tmp_path)})

    assert list(tmp_path.iterdir()) == []
