"""What TensorBoard itself reads from the files that are written for it."""

import sys

import pytest

from job.errors import ConfigError
from job.report.tensorboard import EXPORTED, TensorBoard, export
from tests.unit.report_support import Log, whole

pytest.importorskip("tensorboard")


def read(folder):
    """Scalars as TensorBoard shows them: {tag: {step: value}}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: {s.step: s.value for s in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_a_whole_log_is_exported(tmp_path):
    """Every logged value of every step is there, under a name of its own."""
    files = export(bytes(whole()), "events.jsonl")
    (tmp_path / EXPORTED).write_bytes(files[f"tensorboard/{EXPORTED}"])
    scalars = read(tmp_path)

    assert sorted(scalars) == [
        "evaluation/bits_per_byte",
        "loss/batch",
        "loss/train",
        "loss/validation",
        "speed/tokens_per_second",
        "training/gradient_norm",
        "training/learning_rate",
    ]
    assert list(scalars["loss/batch"]) == list(range(1, 91))
    assert scalars["loss/validation"][90] == pytest.approx(whole().events[-4]["val_loss"])


def test_steps_that_are_done_again_replace_those_of_before(tmp_path):
    """After a restart from step 30 TensorBoard shows what the second attempt did, and no more of the first."""
    first, second = TensorBoard(tmp_path), Log().start().train(31, 40, loss=lambda step: 2.0)
    for event in Log().start().train(1, 45, loss=lambda step: 1.0).events:
        first.add(event)
    first.close()
    later = TensorBoard(tmp_path)
    later.begin(31)
    for event in second.events:
        later.add(event)
    later.close()

    assert read(tmp_path)["loss/batch"] == {step: 1.0 if step <= 30 else 2.0 for step in range(1, 41)}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    """Without tensorboard the error says what to install."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    with pytest.raises(ConfigError, match=r"pip install 'gpt-pretrain-job\[tensorboard\]'"):
        TensorBoard(tmp_path)
