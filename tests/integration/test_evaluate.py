"""`evaluate` over a run that was really trained: by windows, strided, whole and by batches."""

from dataclasses import replace

import pytest

from job.config_file import load_config
from job.errors import ConfigError, DataError
from job.evaluate import evaluate

T = 64  # context
LENGTH = 500  # of the other text, bytes and tokens


@pytest.fixture(scope="module")
def losses(finished, tmp_path_factory):
    """What `evaluate` says of another text than the run's."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "other.txt").write_text(("line after line of some text that counts. " * 20)[:LENGTH])
    (folder / "short.txt").write_text("line 12")
    (folder / "one.txt").write_text("l")
    config = load_config(None, None, [f"data.cache_dir={folder / 'cache'}"]).config
    config = replace(config, run_uri=str(finished.world.run))

    def of(name="other.txt", **what):
        return evaluate(config, "last", lambda *_: None, corpus=str(folder / name), **what)["test"]

    return of


def test_windows_leave_a_tail_out(losses):
    """By windows the tokens of an incomplete last one are not measured."""
    assert losses()["tokens"] == (LENGTH - 1) // T * T


def test_strides_leave_nothing_out(losses):
    """Strided, every token but the first is measured, whatever the stride; what is before it changes the loss."""
    wide, narrow = losses(stride=T), losses(stride=4)

    assert wide["tokens"] == narrow["tokens"] == LENGTH - 1
    assert narrow["loss"] != wide["loss"]
    assert narrow["perplexity"] > 1
    assert narrow["bits_per_byte"] > 0


def test_batches(losses):
    """By batches the first windows are measured: batches times the run's batch size, as many as there are."""
    assert losses(batches=1, stride=8)["tokens"] < losses(stride=8)["tokens"]
    assert losses(batches=1000, stride=8) == losses(stride=8)


def test_a_short_text(losses):
    """A text shorter than the context is refused by windows and measured by strides; one token alone cannot be."""
    assert losses("short.txt", stride=8)["tokens"] == len("line 12") - 1
    with pytest.raises(DataError, match=r"test has 7 tokens, expected at least 65 .*--window"):
        losses("short.txt")
    with pytest.raises(DataError, match="test has 1 tokens, expected at least 2"):
        losses("one.txt", stride=8)


def test_windows_shorter_than_the_context(losses):
    """The model reads as many tokens at once as it is told, and each costs more after fewer others."""
    short = losses(window=16)

    assert short["tokens"] == (LENGTH - 1) // 16 * 16
    assert short["loss"] != losses()["loss"]
    assert losses(window=T) == losses()


def test_refused_stride(losses):
    """A stride longer than the window would leave tokens out."""
    with pytest.raises(ConfigError, match="--stride 65 must be from 1 to the window of 64"):
        losses(stride=T + 1)
    with pytest.raises(ConfigError, match="--stride 17 must be from 1 to the window of 16"):
        losses(window=16, stride=17)


def test_refused_window(losses):
    """A window longer than the context has no positions."""
    with pytest.raises(ConfigError, match=r"--window 65 must be at most model\.context_length=64"):
        losses(window=T + 1)
