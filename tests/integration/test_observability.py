"""What a run lets people see: its endpoint while it lives, its history over a kill, its last values, its picture."""

import re
import signal

import pytest

from tests.integration.command import SLOW

METRICS = [
    "pretrain_step",
    "pretrain_tokens_total",
    "pretrain_loss_nats{split}",
    "pretrain_perplexity{split}",
    "pretrain_bits_per_byte{split}",
    "pretrain_learning_rate",
    "pretrain_gradient_norm",
    "pretrain_step_duration_seconds_bucket{le}",
    "pretrain_tokens_per_second",
    "pretrain_phase{phase}",
    "pretrain_progress_ratio",
    "pretrain_eta_seconds",
    "pretrain_goodput_ratio",
    "pretrain_checkpoint_duration_seconds{stage}",
    "pretrain_checkpoint_bytes",
    "pretrain_checkpoint_last_success_timestamp_seconds",
    "pretrain_checkpoint_failures_total{reason}",
    "pretrain_checkpoint_rejected_total{reason}",
    "pretrain_storage_errors_total{operation}",
    "pretrain_nonfinite_steps_total",
    "pretrain_restarts_total",
    "pretrain_training_started_timestamp_seconds",
    "pretrain_checkpoint_period_seconds",
    "pretrain_ended{code}",
    "pretrain_build_info{torch}",
]  # with a label that each of its samples has


def value(metrics: str, sample: str) -> float:
    """The value of a sample in Prometheus' text format."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", metrics, re.MULTILINE)
    assert found, f"no {sample}"
    return float(found[1])


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_training_run_is_healthy_and_ready(killed, path):
    """Both answer 200 while it trains."""
    assert killed.answers[path] == (200, "ok\n")


def test_a_training_run_can_be_scraped(killed):
    """/metrics says how far it is, and what it is doing: one phase, the others 0."""
    status, metrics = killed.answers["/metrics"]
    phases = re.findall(r"^pretrain_phase\{.*\} (\S+)$", metrics, re.MULTILINE)

    assert status == 200
    assert value(metrics, "pretrain_step") >= 15
    assert value(metrics, "pretrain_tokens_total") >= 15 * 4 * 64
    assert value(metrics, 'pretrain_loss_nats{split="validation"}') < 5.5
    assert sorted(phases) == ["0.0"] * (len(phases) - 1) + ["1.0"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_last_values_are_kept(finished, metric):
    """metrics.prom has a sample of every metric that a CPU can have."""
    name, _, label = metric.rstrip("}").partition("{")
    sample = rf'{name}\{{.*{label}="' if label else f"{name} "

    assert re.search(f"^{sample}", finished.world.metrics(), re.MULTILINE)


def test_the_last_values_are_those_of_the_end(finished):
    """The last step, all tokens, progress 1, and the loss that the summary gives."""
    metrics, summary = finished.world.metrics(), finished.ending.summary

    assert value(metrics, "pretrain_step") == 40
    assert value(metrics, "pretrain_tokens_total") == summary["tokens"]
    assert value(metrics, "pretrain_progress_ratio") == 1
    assert value(metrics, 'pretrain_loss_nats{split="validation"}') == summary["val_loss"]
    assert value(metrics, 'pretrain_phase{phase="done"}') == 1
    assert value(metrics, 'pretrain_ended{code="0",reason="Complete"}') == 1


def test_a_failed_call_to_storage_is_counted(world):
    """A view that cannot be written ends nothing, and is counted under its verb."""
    (world.run / "latest.json" / "in the way").mkdir(parents=True)
    ending = world.train("training.max_steps=5")

    assert ending.code == 0
    assert value(world.metrics(), 'pretrain_storage_errors_total{operation="put"}') >= 1


@pytest.fixture(scope="module")
def resumed(killed, tmp_path_factory):
    """The killed run, continued to its end."""
    world = killed.world.copy(tmp_path_factory.mktemp("resumed"))
    return world, world.train("training.sample_every=1", "training.sample_tokens=1")


@pytest.fixture(scope="module")
def history(resumed):
    """Its events.jsonl."""
    return resumed[0].history()


def steps(history, event):
    """The steps of all events of a name, in the order in which they stand."""
    return [line["step"] for line in history if line["event"] == event]


def test_a_killed_run_ends_as_if_it_had_not_been(resumed, killed, finished):
    """SIGKILL between two checkpoints costs the steps since the first one, and nothing else."""
    _, ending = resumed

    assert ending.codes == {0}
    assert [line["step"] for line in ending.events("run continued")] == killed.world.saved()[-1:]
    assert ending.summary["chain"] == finished.ending.summary["chain"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("step", list(range(5, 41, 5))),
        ("evaluated", list(range(0, 41, 10))),
        ("sampled", list(range(1, 41))),
    ],
)
def test_each_event_is_told_once(history, event, expected):
    """Over a kill nothing is told twice and nothing is missing, in order, from step 0 on."""
    assert steps(history, event) == expected


def test_each_checkpoint_is_told_once(history):
    """Every step at which one is due was saved, or skipped because the one before was still being stored; the last
    is always saved."""
    saved, skipped = steps(history, "checkpoint saved"), steps(history, "checkpoint skipped")

    assert sorted(saved + skipped) == list(range(5, 41, 5))
    assert saved[-1] == 40


def test_each_attempt_is_told(history, killed):
    """`run started` stands there for both attempts, with the step from which each went on."""
    assert steps(history, "run started") == [0, killed.world.saved()[-1]]


def test_the_history_ends_with_the_run(history):
    """Its last line is `run ended`, with the code; the attempt that was killed could not say a word."""
    assert [line["code"] for line in history if line["event"] == "run ended"] == [0]
    assert history[-1]["event"] == "run ended"


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("step", {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu"}),
        ("evaluated", {"train_loss", "val_loss", "perplexity", "bits_per_byte"}),
    ],
)
def test_events_carry_their_numbers(history, event, fields):
    """Each has what a plot needs."""
    lines = [line for line in history if line["event"] == event]

    assert all(fields | {"step", "time"} <= line.keys() for line in lines)


def test_a_restart_is_counted(resumed):
    """The second attempt is one restart, and its tokens are those of the whole run."""
    metrics = resumed[0].metrics()

    assert value(metrics, "pretrain_restarts_total") == 1
    assert value(metrics, "pretrain_tokens_total") == 40 * 4 * 64


def test_a_finished_run_has_its_report(finished):
    """The page tells the end of the run, and the pictures lie beside it."""
    folder = finished.world.run / "report"
    page = (folder / "report.html").read_text()

    assert '<span class="status good">complete</span>' in page
    assert finished.world.history()[0]["corpus"]["fingerprint"] in page
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_stopped_run_has_its_report(world):
    """A run that was asked to stop has drawn how far it came before it ends."""
    with world.training(*SLOW, "observe.report=true", "runtime.grace_seconds=200") as job:
        job.until("checkpoint saved")
        job.process.send_signal(signal.SIGTERM)
        assert job.ending().code == 75

    assert "ended with 75: Interrupted: SIGTERM received" in (world.run / "report" / "report.html").read_text()


def test_tensorboard_reads_the_run(finished):
    """Its files hold every logged step."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(finished.world.run / "tensorboard")).Reload()

    assert [scalar.step for scalar in found.Scalars("loss/batch")] == list(range(5, 41, 5))


def test_the_history_holds_what_a_report_needs(finished):
    """Config, versions, machine, data and what starting up took stand in the log itself."""
    started = finished.world.history()[0]

    assert started["config"]["training"]["max_steps"] == 40
    assert {"torch", "numpy"} <= started["code"]["packages"].keys()
    assert started["machine"]["cores"] >= 1
    assert {"importing", "pulling", "tokenizing", "restoring"} <= started["startup"].keys()
