"""Log lines: one format for ours and for libraries', on the stderr of the moment, without secrets."""

import io
import json
import logging
import re
import sys
import warnings

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from job.infra.logs import configure_logging, redact

SECRET = "wJalrXUtnFEMI/K7MDENG+canary"


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(capsys):
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().err.splitlines()]


def test_lines_are_json_where_nobody_watches(capsys):
    """Away from a terminal each line is JSON: time in UTC, level and event first, then what was said."""
    configure_logging()
    structlog.get_logger().info("checkpoint saved", step=250, seconds=0.5)

    [line] = lines(capsys)
    assert list(line) == ["timestamp", "level", "event", "step", "seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
    assert list(line.values())[1:] == ["info", "checkpoint saved", 250, 0.5]


def test_lines_are_readable_on_a_terminal(monkeypatch):
    """On a terminal a line is for people: time, level, event and `name=value`."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logging()
    structlog.get_logger().info("checkpoint saved", step=250, bytes=1024)

    assert re.fullmatch(r"\S+T\S+Z \[info\] checkpoint saved step=250 bytes=1024\n", terminal.getvalue())


def test_a_terminal_gets_colours_unless_refused(monkeypatch):
    """A terminal's lines carry colours."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging()
    structlog.get_logger().info("started")

    assert "\x1b[" in terminal.getvalue()


def test_the_format_can_be_asked_for(monkeypatch):
    """`json` means JSON even on a terminal."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    configure_logging("json")
    structlog.get_logger().info("started")

    assert json.loads(terminal.getvalue())["event"] == "started"


def test_lines_below_the_level_are_left_out(capsys):
    """`level` is the least that is said."""
    configure_logging("json", "warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_stderr_is_looked_up_when_a_line_is_written(monkeypatch):
    """A logger made earlier writes to the stderr that a progress bar has put in place since."""
    configure_logging("json")
    log = structlog.get_logger().bind(step=1)
    monkeypatch.setattr(sys, "stderr", bar := io.StringIO())
    log.info("saved")
    logging.getLogger("botocore").warning("slow")

    assert [json.loads(line)["event"] for line in bar.getvalue().splitlines()] == ["saved", "slow"]


def test_a_closed_stderr_ends_nothing(monkeypatch):
    """A job whose stderr has gone away goes on."""
    configure_logging("json")
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)

    structlog.get_logger().info("unheard")


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_an_exception_is_shown_without_its_variables(capsys, fmt):
    """A traceback is part of the line; the values of local variables are not."""
    configure_logging(fmt)
    variable = "value-of-" + "a-variable"
    try:
        raise ValueError(f"broken at {len(variable)}")
    except ValueError:
        structlog.get_logger().exception("failed")

    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ValueError: broken at 19" in said
    assert "value-of-a-variable" not in said
    assert said.count("[error]" if fmt == "console" else '"level"') == said.count("failed") == 1


def test_a_loss_that_is_not_finite_stays_json(capsys):
    """NaN is no JSON: it is written as text."""
    configure_logging("json")
    structlog.get_logger().warning("step skipped", loss=float("nan"))

    assert lines(capsys)[0]["loss"] == "nan"


def test_libraries_speak_in_the_same_format_from_warnings_on(capsys):
    """botocore's and urllib3's lines are ours in format, and only warnings, even when we debug."""
    configure_logging("json", "debug")
    for name in ("botocore.endpoint", "urllib3.connectionpool", "s3transfer.futures"):
        logging.getLogger(name).debug("details")
        logging.getLogger(name).warning("retry %d", 3)

    said = lines(capsys)
    assert [line["event"] for line in said] == ["retry 3"] * 3
    assert said[0]["logger"] == "botocore.endpoint"


def test_python_warnings_are_log_lines(capsys):
    """What a library warns about through `warnings` is a line like any other."""
    configure_logging("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated thing", stacklevel=1)

    assert "deprecated thing" in lines(capsys)[0]["event"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key AKIAIOSFODNN7EXAMPLE refused", "key [redacted] refused"),
        ("key ASIAIOSFODNN7EXAMPLE refused", "key [redacted] refused"),
        ("aws_secret_access_key = abc/def+1", "aws_secret_access_key = [redacted]"),
        ('{"aws_session_token": "abc"}', '{"aws_session_token": "[redacted]"}'),
        ("X-Amz-Security-Token: abc== next", "X-Amz-Security-Token: [redacted] next"),
        ("GET /b/k?X-Amz-Signature=0a1b&x=1", "GET /b/k?X-Amz-Signature=[redacted]&x=1"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=a, Signature=b", "Authorization: [redacted]"),
        ("{'Authorization': b'Bearer abc', 'x': 1}", "{'Authorization': b'[redacted]', 'x': 1}"),
        ("from https://me:word@host/path", "from https://[redacted]@host/path"),
        ("from https://me:w@rd@host/path", "from https://[redacted]@host/path"),
        ("see https://host/a.txt?token=1&x=2 now", "see https://host/a.txt?[redacted] now"),
    ],
)
def test_credentials_are_hidden(text, shown):
    """Keys, signed headers and what URLs carry beside their path are replaced; the rest stays readable."""
    assert redact(text, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run/log/000000000001.json",
        "authorization failed for bucket b",
        "step 250: 1234 tokens, loss=2.1",
        "why? because of me@host",
    ],
)
def test_ordinary_text_stays(text):
    """What is no credential is not touched."""
    assert redact(text, {"AWS_SECRET_ACCESS_KEY": ""}) == text


@given(before=st.text(), after=st.text())
def test_the_values_of_secrets_never_show(before, after):
    """A secret of the environment is hidden in any surroundings."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GPT_JOB_API_KEY"):
        assert SECRET not in redact(before + SECRET + after, {name: SECRET})


def test_a_secret_is_hidden_in_its_url_form():
    """The form in which a secret stands in a URL is hidden too."""
    shown = redact("q=wJalrXUtnFEMI%2FK7MDENG%2Bcanary", {"AWS_SESSION_TOKEN": SECRET})

    assert shown == "q=[redacted]"


def test_a_short_secret_does_not_eat_the_log():
    """A test server's `test` as key would hide every `test` in the log: short values stay."""
    assert redact("the test split", {"AWS_SECRET_ACCESS_KEY": "test"}) == "the test split"


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_place_in_a_line_shows_a_secret(capsys, monkeypatch, fmt):
    """Event, values at any depth, exceptions and libraries' lines are all filtered."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    configure_logging(fmt, "debug")
    log = structlog.get_logger()
    log.info(f"with {SECRET}", value=SECRET, deep={"list": [SECRET, {"x": (SECRET,)}]}, error=OSError(SECRET))
    log.info("headers", headers={"Authorization": "Bearer other-canary"})
    logging.getLogger("urllib3").warning("sent %s", SECRET)
    try:
        raise OSError(SECRET)
    except OSError:
        log.exception("failed")
        logging.getLogger("botocore").exception("failed")

    said = capsys.readouterr().err
    assert SECRET not in said
    assert "other-canary" not in said


def test_a_very_long_line_takes_no_time():
    """Filtering is about linear: any text of 50,000 characters takes far less than a second."""
    for unit in ("x", "a://", "AKIA", "password="):
        assert redact(unit * (50_000 // len(unit)), {})
