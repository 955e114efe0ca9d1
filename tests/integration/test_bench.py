"""`gpt-job bench` on the tiny run: what it says to people and programs, and what a point that fails does."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from job.bench.run import PARTS
from job.bench.surroundings import measure_checkpoint, measure_data, measure_generation
from job.bench.text import bench_lines
from job.cli import main
from job.cli_bench import PARTS as OFFERED
from job.training.flops import training_flops_per_token
from job.training.learner import fresh_model
from tests.chaos.harness import tiny, write_corpus


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return tiny(f"{folder}/run", write_corpus(folder)).config


def test_the_parts_that_are_offered_are_those_that_are_measured():
    """The flag and the table of parts name the same."""
    assert tuple(PARTS) == OFFERED


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What the command finds of a grid of two points, one of which this machine cannot run, and of its data."""
    folder = tmp_path_factory.mktemp("grid")
    flags = ["--seconds", "0.1", "--part", "training", "--part", "data", "--json", "--set", "runtime.threads=1"]
    flags += ["--set", "data.workers=2"]
    flags += ["--set", "data.tokenizer=byte", "--set", "model.n_layer=1", "--set", "model.n_embd=32"]
    command = [sys.executable, "-m", "job", "bench", *flags, "--grid", "runtime.device=cpu,mps"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def trainings(figures):
    """The rows of the grid."""
    return figures["training"]


def test_batches_of_loader_workers_are_measured(figures):
    """As the big presets have them."""
    assert figures["data"]["corpus_tokens"] > 0
    assert figures["data"]["batch_seconds"] > 0


def test_a_row_for_each_point(trainings):
    """Each row says what was set for it."""
    assert [row["settings"] for row in trainings] == [{"runtime.device": device} for device in ("cpu", "mps")]


def test_a_point_that_fails_says_why(trainings):
    """It ends neither the command nor the other points."""
    assert "Metal" in trainings[1]["error"]


def test_figures_fit_each_other(trainings):
    """Speed is tokens by seconds; MFU is FLOPs by seconds by the measured peak."""
    row = trainings[0]

    assert row["tokens_per_second"] == pytest.approx(row["tokens_per_step"] / row["step_seconds"])
    assert row["mfu"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / row["matmul_peak_flops"])
    assert 0 < row["mfu"] < 1
    assert row["best_step_seconds"] <= row["step_seconds"]
    assert row["matmul_peak_flops"] > 1e9
    assert row["peak_memory_bytes"] > 50 << 20


def test_the_table_shows_every_point(trainings):
    """People see a line for each, the failed one with its reason."""
    lines = list(bench_lines({"training": trainings}))

    assert [line.split()[0] for line in lines[1:3]] == ["runtime.device=cpu", "runtime.device=mps"]
    assert "ConfigError" in lines[2]


def test_flops_of_a_token(config):
    """Six for each parameter in a product and twelve L T C for attention, counted by hand."""
    model, m = fresh_model(config, 257), config.model
    by_hand = 6 * (m.n_layer * 12 * m.n_embd**2 + 257 * m.n_embd) + 12 * m.n_layer * m.context_length * m.n_embd

    assert training_flops_per_token(model) == by_hand


@pytest.mark.parametrize(
    ("part", "measure"),
    [("data", measure_data), ("checkpoint", measure_checkpoint), ("generation", measure_generation)],
)
def test_what_goes_on_around_the_steps(config, tmp_path, monkeypatch, part, measure):
    """Every figure is a number above nothing, the table has its line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    found = measure(config, 0.1)
    (line,) = bench_lines({part: found})

    assert all(value > 0 for value in found.values() if not isinstance(value, str))
    assert line.startswith(part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", ["model.n_layer", "=1,2", "model.n_layer="])
def test_a_grid_that_is_none(axis):
    """An axis without key or values is wrong usage."""
    ended = CliRunner().invoke(main, ["bench", "--grid", axis])

    assert ended.exit_code == 2
    assert "KEY=A,B,C" in ended.stderr


def test_a_grid_of_an_unknown_setting():
    """Each point is checked before the first one is measured."""
    ended = CliRunner().invoke(main, ["bench", "--grid", "model.n_layers=1,2"])

    assert ended.exit_code == 78
    assert "model.n_layer" in ended.stderr
