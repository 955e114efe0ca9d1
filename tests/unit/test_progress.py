"""The bar, on a real pseudo-terminal, and silence everywhere else."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.infra.progress import Pace, SilentProgress, count, duration, open_progress, short

ROOT = Path(__file__).parents[2]
HEAD = """
import sys, time
import structlog
from job.infra.logs import configure_logging
from job.infra.progress import open_progress
configure_logging()
log, bar = structlog.get_logger(), open_progress()
"""
TRAIN = """
bar.phase("training", 20_000, "steps")
bar.update(12_000)
for step in range(12_001, 12_004):
    time.sleep(0.3)
    bar.update(step, loss=2.134, tokens_per_second=145_234.0)
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(code: str, columns: int = 80) -> str:
    """What Python code after HEAD writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    command = [sys.executable, "-c", HEAD + code]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    with suppress(OSError):  # Linux' way to say that the other side is closed
        while chunk := os.read(ours, 4096):
            written += chunk
    os.close(ours)
    assert process.wait(30) == 0, written.decode()
    return written.decode()


def shown(written: str) -> list[str]:
    """The lines, live ones included, as a person saw them."""
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", written)) if line.strip()]


@pytest.fixture(scope="module")
def training():
    return on_a_terminal(TRAIN + "log.info('evaluated', step=12_003)\ntime.sleep(0.3)\nbar.close()\nprint('result')")


def test_training_is_one_line_with_all_there_is_to_know(training):
    """Name, bar, step and total, loss, speed, time gone and time to go."""
    pattern = r"training +[━╸╺]+ 1200\d/20000  loss 2\.134   145k tok/s +\w+  eta \S+ *"

    assert any(re.fullmatch(pattern, line) for line in shown(training))


def test_the_line_fits_eighty_columns(training):
    """No line of the bar is wider than a terminal of 80 columns."""
    assert max(len(line) for line in shown(training) if line.startswith("training")) <= 80


def test_log_lines_stand_above_the_bar(training):
    """A log line is whole, and the bar is drawn again below it."""
    lines = shown(training)
    at = next(number for number, line in enumerate(lines) if line.endswith("[info] evaluated step=12003"))

    assert any(line.startswith("training") for line in lines[at + 1 :])


def test_the_terminal_is_left_as_it_was(training):
    """The cursor is shown again, and what follows starts on a line of its own."""
    assert training.rindex("\x1b[?25h") > training.rindex("\x1b[?25l")
    assert shown(training)[-1] == "result"


def test_the_end_is_not_fooled_by_steps_of_an_earlier_attempt(training):
    """12,000 steps done before the restart do not count as fast: 8,000 at 0.3 s or more are 40 minutes."""
    etas = re.findall(r"eta (?:(\d+)h)?(\d+)m", "\n".join(shown(training)))

    assert etas
    assert min(60 * int(hours or 0) + int(minutes) for hours, minutes in etas) >= 35


def test_a_narrow_terminal_leaves_out_what_matters_least():
    """On 50 columns the step and the bar remain, still on one line."""
    lines = [line for line in shown(on_a_terminal(TRAIN + "bar.close()", columns=50)) if line.startswith("training")]

    assert max(map(len, lines)) <= 50
    assert re.search(r"━ 12003/20000", lines[-1])


def test_bytes_of_unknown_number_are_counted():
    """Without a total there is no end to tell, but the bar moves and the count grows."""
    lines = shown(on_a_terminal("bar.phase('pulling', None, 'bytes')\nbar.advance(12_300_000)\nbar.close()"))

    assert re.match(r"pulling .*━ 12\.3M bytes +\w+", lines[-1])
    assert "eta" not in lines[-1]


def test_a_total_may_become_known_on_the_way():
    """Bytes of one file after another: what is to come is added, and there is an end to tell."""
    code = "bar.phase('pulling', None, 'bytes')\nbar.advance(0, 20_000)\nbar.advance(10_000)\nbar.advance(0, 20_000)"
    lines = shown(on_a_terminal(f"{code}\nbar.close()"))

    assert re.match(r"pulling .* 10k/40k bytes +\w+ +eta", lines[-1])


def test_what_cannot_be_counted_has_no_count():
    """A phase without units shows the time that it takes, and no 0."""
    lines = shown(on_a_terminal("bar.phase('restoring')\nbar.close()"))

    assert re.fullmatch(r"restoring +[━╸╺]+ +\d+s", lines[-1])


def test_what_is_saved_stands_beside_the_bar():
    """The last checkpoint and the GPU's memory, where there is room for them."""
    code = "bar.phase('training', 100, 'steps')\nbar.update(40, loss=2.0, more={'saved': '30', 'gpu': '12.3GB'})"
    lines = shown(on_a_terminal(f"{code}\nbar.close()", columns=120))

    assert re.match(r"training .* 40/100  loss 2\.000  saved 30  gpu 12\.3GB", lines[-1])


def test_a_phase_replaces_the_one_before():
    """One line at a time; training goes on where it was after an evaluation."""
    code = """
bar.phase("training", 100, "steps")
bar.update(40, loss=2.0)
bar.phase("evaluating", 20, "batches")
bar.advance(5)
bar._bars.refresh()
bar.phase("training", 100, "steps")
bar._bars.refresh()
bar.close()
"""
    lines = shown(on_a_terminal(code))

    assert any(re.match(r"evaluating .* 5/20 batches", line) for line in lines)
    assert re.match(r"training .* 40/100  loss 2\.000", lines[-1])


def test_results_stay_on_stdout():
    """While the bar is live, what is printed goes to stdout and not through the bar."""
    written = on_a_terminal("bar.phase('saving')\nassert sys.stdout is sys.__stdout__\nbar.close()")

    assert "saving" in written


def test_the_bar_is_for_terminals_only(capsys):
    """Where stderr is no terminal nothing is shown."""
    bar = open_progress("auto")
    bar.phase("training", 100, "steps")
    bar.update(40, loss=2.0)
    bar.advance(1)
    bar.close()

    assert isinstance(bar, SilentProgress)
    assert capsys.readouterr().err == ""


def test_json_logs_have_no_bar(monkeypatch):
    """Who asks for JSON gets nothing else, even on a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    assert isinstance(open_progress("json"), SilentProgress)


@given(done_before=st.integers(0, 10**6), seconds_per_step=st.floats(0.001, 1000), steps=st.integers(1, 1000))
def test_the_end_follows_from_this_attempts_speed(done_before, seconds_per_step, steps):
    """Time to go is the steps to go at the speed of this attempt, however much was done before it."""
    pace = Pace(started=0.0, origin=(50.0, done_before))
    now, completed = 50.0 + steps * seconds_per_step, done_before + steps

    assert pace.eta(completed, completed + 100, now) == pytest.approx(100 * seconds_per_step, rel=1e-3)


def test_nobody_knows_the_end_before_the_first_step():
    """Without progress in this attempt there is no time to go."""
    pace = Pace(started=0.0)

    assert pace.eta(5, 10, now=3.0) is None
    assert Pace(started=0.0, origin=(1.0, 5.0)).eta(5, 10, now=3.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (216, "3m36s"), (3720, "1h02m"), (273_600, "3d04h"), (86_399, "23h59m")],
)
def test_durations_are_short(seconds, text):
    """Two units at most."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (512, "512"), (999.6, "1k"), (45_230, "45.2k"), (384e6, "384M"), (1.2e9, "1.2B"), (2.5e12, "2.5T")],
)
def test_large_numbers_have_three_digits_and_a_letter(number, text):
    """Three digits and k, M, B or T."""
    assert short(number) == text


def test_a_count_is_as_wide_at_the_start_as_at_the_end():
    """The bar beside it does not change its length from step to step."""
    assert len(count(1, 20_000, "steps")) == len(count(20_000, 20_000, "steps")) == len("20000/20000")
