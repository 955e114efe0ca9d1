"""The `ladder` command as a person runs it, and the order of its big rungs after real training."""

import json

import pytest

from job.config_file import load_config
from job.errors import ConfigError, DataError, NotFoundError, StorageError
from job.infra.progress import SilentProgress
from job.ladder import ladder
from job.model.ladder import NAMES
from tests.integration.command import Job
from tests.unit.data_support import published

SHORT = ("training.max_steps=20", "training.eval_batches=10", "training.sample_tokens=20")


def config_for(folder, *settings):
    """Baby GPT's settings for a few steps, with a cache in `folder`."""
    return load_config("baby-cpu", overrides=[*SHORT, f"data.cache_dir={folder}/cache", *settings]).config


def climb(folder, *settings, processes=1):
    """The table of a ladder in `folder`/out, trained in this process or in others."""
    return ladder(config_for(folder, *settings), 1, processes, folder / "out", lambda: None, SilentProgress())[0]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A folder, and how `gpt-job ladder` ended in it."""
    folder = tmp_path_factory.mktemp("ladder")
    settings = [word for setting in SHORT for word in ("--set", setting)]
    arguments = ("ladder", *settings, "--seeds", "1", "--to", "out", "--json")
    with Job(folder, arguments, {"XDG_CACHE_HOME": str(folder / "cache")}) as job:
        return folder, job.ending()


def test_what_it_prints(command):
    """One JSON object: every rung with its losses, what it is for, what happened, and a sample."""
    _, ending = command
    found = json.loads(ending.stdout)

    assert ending.code == 0
    assert [rung["name"] for rung in found["rungs"]] == list(NAMES)
    assert all(1 < rung["val_loss"] < 6 and rung["purpose"] and rung["happened"] for rung in found["rungs"])
    assert all(len(rung["sample"]) == 21 for rung in found["rungs"])


def test_what_it_leaves(command):
    """A page, a picture and the figures, in the folder that was named."""
    folder, _ = command
    page = (folder / "out/ladder.html").read_text()

    assert all(name in page for name in NAMES)
    assert (folder / "out/ladder.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((folder / "out/ladder.json").read_text())["rungs"]) == len(NAMES)


def test_in_how_many_processes(tmp_path):
    """One or two processes: the same figures and samples, bit for bit."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = climb(tmp_path / "one"), climb(tmp_path / "two", processes=2)

    assert [(r.train_losses, r.val_losses, r.sample) for r in one.rows] == [
        (r.train_losses, r.val_losses, r.sample) for r in two.rows
    ]


def test_what_was_trained_is_not_trained_again(tmp_path):
    """A ladder goes on where it was stopped: what is there stays, what is missing or damaged is trained the same."""
    first = climb(tmp_path)
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/models").iterdir()}
    damaged = next(path for path in models if path.name.startswith("bigram-"))
    damaged.write_text("{")
    second = climb(tmp_path)

    assert [row.val_losses for row in first.rows] == [row.val_losses for row in second.rows]
    assert [path for path, time in models.items() if path.stat().st_mtime_ns != time] == [damaged]


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        (("data.corpus=small.txt",), DataError, r"needs 33 \(model.context_length \+ 1\)"),
        (("data.corpus=none.txt",), NotFoundError, "none.txt"),
        (("data.split=[1.0, 0.0]",), DataError, "no validation text"),
        (("training.max_seconds=5", "training.max_steps=none"), ConfigError, "max_steps"),
        (("runtime.device=cuda",), ConfigError, "runtime.device='cuda'"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, settings, error, reason):
    """What is wrong is said before anything is trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.txt").write_text("so few words that no window fits\n" * 8)
    with pytest.raises(error, match=reason):
        climb(tmp_path, *settings)

    assert not (tmp_path / "out/models").exists()


def test_a_folder_that_cannot_be(tmp_path):
    """Where no folder can be made the reason says which."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out"):
        climb(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("corpus", ["builtin:python-docs", "tiny-shakespeare"])
def test_the_big_rungs(tmp_path, corpus):
    """After real training: bigram > several heads > residuals with norm > scaled up, by more than seeds differ by."""
    named = corpus if corpus.startswith("builtin:") else str(published("tinyshakespeare.txt").resolve())
    config = load_config("baby-cpu", overrides=[f"data.corpus={named}", f"data.cache_dir={tmp_path}/cache"]).config
    table, _ = ladder(config, 3, None, tmp_path, lambda: None, SilentProgress())
    losses = {row.name: (min(row.val_losses), max(row.val_losses)) for row in table.rows}
    print({name: tuple(round(loss, 3) for loss in pair) for name, pair in losses.items()})

    for higher, lower in (
        ("bigram", "several heads"),
        ("several heads", "layer norm"),
        ("layer norm", "scaled up"),
        ("dropout", "scaled up"),
    ):
        assert losses[higher][0] > losses[lower][1], (higher, lower)
    for name, (low, high) in BANDS[corpus].items():
        assert low < losses[name][0], name
        assert losses[name][1] < high, name


# Three seeds lie within them, with twice their spread on each side.
BANDS = {
    "builtin:python-docs": {
        "bigram": (2.28, 2.42),
        "several heads": (2.12, 2.23),
        "layer norm": (1.83, 1.93),
        "dropout": (1.90, 2.00),
        "scaled up": (1.50, 1.70),
    },
    "tiny-shakespeare": {"bigram": (2.45, 2.56), "dropout": (2.16, 2.25), "scaled up": (1.60, 1.95)},
}
