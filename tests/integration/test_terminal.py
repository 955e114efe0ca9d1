"""What a person sees who trains on a real pseudo-terminal: bars, evaluations, the end, and Ctrl-C."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from tests.integration.command import ROOT, SLOW, World, assignments

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(world, columns, *settings, stop_at=None):
    """Train; at the first sight of `stop_at` press Ctrl-C. What a person saw, line by line, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**own, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    words = ["train", "--config", "run.toml", *assignments(*settings)]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(
        [sys.executable, "-m", "job", *words], cwd=world.folder, env=environ, start_new_session=True, **streams
    )
    os.close(theirs)
    written = ""
    with suppress(OSError):  # Linux' way to say that the other side is closed
        while chunk := os.read(ours, 4096):
            written += CONTROL.sub("", chunk.decode(errors="replace"))
            if stop_at and stop_at in written:
                stop_at = process.send_signal(signal.SIGINT)
    os.close(ours)
    return [line.rstrip() for line in re.split(r"[\r\n]+", written) if line.strip()], process.wait(60)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A run to its end on a terminal of 40 columns."""
    world = World.create(tmp_path_factory.mktemp("narrow"))
    return on_a_terminal(world, 40, "training.sample_every=20", "training.sample_tokens=20")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that is stopped with Ctrl-C after its first checkpoint, on 100 columns."""
    world = World.create(tmp_path_factory.mktemp("wide"))
    return on_a_terminal(world, 100, *SLOW, "data.cache_dir=own", stop_at="checkpoint saved")


@pytest.mark.parametrize("shape", [r"(pulling|tokenizing) .* 6k/6k bytes", r"training .*/40 "])
def test_phases_have_their_bars(stopped, shape):
    """What comes in counts bytes of all there are; training counts steps."""
    assert any(re.match(shape, line) for line in stopped[0])


def test_ctrl_c_says_what_it_does_and_what_a_second_would(stopped):
    """The first saves and ends with 75; a second would leave at once, and cost the steps that are named."""
    lines, code = stopped
    said = " ".join(lines)

    assert code == 75
    assert "stopping at the next step boundary and saving; once more leaves at once" in said
    assert re.search(r"leaving_at_once_means='step \d+ is saved, \d+ steps are to be redone'", said)


def test_a_stopped_run_says_how_to_go_on(stopped):
    """The summary has the command that continues it, as it was typed."""
    lines, _ = stopped

    assert any(re.match(r"run +run  \(interrupted\)", line) for line in lines)
    assert "gpt-job train --config run.toml --set training.sample_every=1" in " ".join(lines)


def test_nothing_is_wider_than_a_narrow_terminal(complete):
    """On 40 columns bars, log lines and the table fit; only commands to copy and the JSON are left whole."""
    lines, code = complete
    wide = [line for line in lines if len(line) > 40 and not line.lstrip().startswith(("gpt-job", "{"))]

    assert code == 0
    assert [line for line in wide if "ended code=0" not in line] == []


def test_a_complete_run_says_what_to_do_next(complete):
    """Losses, and the commands to generate from it, measure it and draw it."""
    lines, _ = complete
    said = " ".join(lines)

    assert "(complete)" in said
    assert re.search(r"validation loss +\d\.\d{4}", said)
    assert "gpt-job generate --run run --prompt 'The '" in said
    assert "gpt-job evaluate --run run --checkpoint best" in said
    assert "gpt-job report --run run" in said
    assert "continue it" not in said
    assert "gpt-job train --config run.toml --set training.sample_every=20" in said
    assert "--set training.max_steps=80" in said


def test_samples_stand_apart(complete):
    """A sample is text of its own below its line, indented."""
    lines, _ = complete
    at = next(number for number, line in enumerate(lines) if "sampled" in line)

    assert any(line.startswith("    ") for line in lines[at + 1 : at + 4])
