"""Runs of every released format, as the job of that time left them: still loaded, verified and continued."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from job.checkpoint import history
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import fetch
from job.config_file import load_config
from job.infra.progress import SilentProgress
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from job.infra.storage import open_store
from job.pretrain import pretrain
from job.training.loading import load_run

FORMATS = sorted(Path(__file__).parent.glob("format-*"))


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def world(request, tmp_path, monkeypatch):
    """A copy of the folder, and the present one: every path in it is relative."""
    shutil.copytree(request.param, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    threads = torch.get_num_threads()
    yield Path()
    torch.set_num_threads(threads)


def said(world):
    """What the run was when it was stored."""
    return json.loads((world / "expected.json").read_bytes())


def parameters_sha256(model):
    """Hash of all parameters: name, type, shape and bytes."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode())
        found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


def standing(run_uri, config):
    checkpoints = CheckpointStore(open_store(run_uri, config.storage))
    checkpoints.log.refresh()
    assert not checkpoints.log.damaged
    return checkpoints, history.checkpoints(checkpoints.records)


def test_every_format_is_here():
    """Format 1 is released, so it stays."""
    assert "format-1" in [path.name for path in FORMATS]


def test_it_is_small(world):
    """Less than 200 KB a format."""
    assert sum(path.stat().st_size for path in world.rglob("*") if path.is_file()) < 200_000


def test_its_weights_are_what_they_were(world):
    """Each checkpoint verifies in full, and the last one gives the model and the text it gave then."""
    config = load_config(path=Path("run.toml")).config
    checkpoints, records = standing("run", config)
    for record in records:
        fetch(checkpoints.objects, record, Path())
    loaded = load_run(config, "last")
    last = records[-1]

    assert [record.step for record in records] == said(world)["steps"]
    assert (last.chain, parameters_sha256(loaded.model)) == (said(world)["chain"], said(world)["parameters_sha256"])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("line 7")) == "line 7"


def test_training_goes_on_from_it(world):
    """Three steps more: they follow the stored ones, and every step is in the history once."""
    resolved = load_config(path=Path("run.toml"), overrides=("training.max_steps=9",))
    status = RunStatus()
    pretrain(resolved, StopSignal(30.0), SilentProgress(), status)
    _, records = standing("run", resolved.config)
    events = [json.loads(line) for line in Path("run/events.jsonl").read_bytes().splitlines()]

    assert (status.status, status.step) == ("complete", 9)
    assert records[-1].facts["prev_checkpoint_seq"] == said(world)["seq"]
    assert [event["step"] for event in events if event["event"] == "step"] == [2, 4, 6, 8]
    assert [event["step"] for event in events if event["event"] == "evaluated"] == [0, 3, 6, 9]
