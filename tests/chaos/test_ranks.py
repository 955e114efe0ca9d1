"""R-19 and its kin: several processes train one run, are stopped, killed and robbed of storage, and go on as others.

Ranks are processes of their own that talk over gloo; each is told its place as a cluster tells it.
"""

import json

import pytest

from job.config_file import load_config
from job.training.loading import load_run
from tests.chaos.commands import train as train_alone
from tests.chaos.harness import Plan
from tests.chaos.several import came_to, codes, losses, train
from tests.integration.command import World

CALM = Plan()
TWO, THREE = (CALM, CALM), (CALM, CALM, CALM)
SHARDED = "runtime.parallel=fsdp"
PLAIN = ("model.dropout=0", "training.max_steps=50", "observe.log_every=1", "optimizer.warmup_steps=0")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The outcome of a run that nothing disturbed, by number of ranks and settings; each is trained once."""
    known = {}

    def outcome_of(ranks, *settings):
        if (ranks, settings) not in known:
            world = World.create(tmp_path_factory.mktemp("unbroken"))
            assert codes(train(world, ranks * (CALM,), *settings)) == ranks * [0]
            known[ranks, settings] = came_to(world)
        return known[ranks, settings]

    return outcome_of


def data_of(path):
    """Windows of each step in the order of the batch, whichever rank read them."""
    found = {}
    for rank, name in enumerate(sorted(path.glob("trained-*"))):
        for line in name.read_text().splitlines():
            _, step, windows = json.loads(line)
            found.setdefault(step, {}).setdefault(rank, []).extend(windows)
    return {step: [window for rank in sorted(ranks) for window in ranks[rank]] for step, ranks in found.items()}


def test_stopped_at_one_rank_both_stop_at_one_step_and_go_on_equal(unbroken, tmp_path):
    """SIGTERM to the second of two: both save and leave with 75, the message names it, and the rest is bit-equal."""
    world = World.create(tmp_path)
    first, second = train(world, (CALM, Plan(stop_at_step=12)))
    said = (first.code, second.code, "SIGTERM received by rank 1" in first.reason, first.summary["status"])
    saved = world.saved()[-1]

    assert said == (75, 75, True, "interrupted"), first.reason
    assert 13 <= first.summary["step"] == saved <= 16  # a step or two later, not at the next evaluation
    assert codes(train(world, TWO)) == [0, 0]
    assert came_to(world) == unbroken(2)


def test_one_two_one(tmp_path):
    """Continued by two processes and by one again: the same samples in the same order, losses within 1e-5."""
    alone, mixed = World.create(tmp_path / "alone"), World.create(tmp_path / "mixed")
    seen, other = tmp_path / "seen", tmp_path / "other"
    seen.mkdir(), other.mkdir()
    assert train_alone(alone, *PLAIN, plan=Plan(trained=other / "trained-0")).code == 0
    notes = [seen / f"trained-{rank}" for rank in range(2)]
    by_one, by_two = Plan(trained=notes[0], stop_at_step=15), Plan(trained=notes[0], stop_at_step=30)
    attempts = [(by_one,), (by_two, Plan(trained=notes[1])), (Plan(trained=notes[0]),)]
    ends = [codes(train(mixed, plans, *PLAIN)) for plans in attempts]
    expected, found = losses(alone), losses(mixed)

    assert ends == [[75], [75, 75], [0]]
    assert data_of(seen) == data_of(other)
    assert list(found) == list(expected) == list(range(1, 51))
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-5


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other_with_a_reason(unbroken, tmp_path):
    """SIGKILL of one rank: within a minute the other says who is gone and ends with 1; they go on to end bit-equal."""
    world = World.create(tmp_path)
    first, second = train(world, (CALM, Plan(kill_at=("batch", 22))), patience=60)

    assert (first.code, second.code) == (1, -9)
    assert "rank 1 is gone" in first.reason
    assert first.codes == {1}
    assert codes(train(world, TWO)) == [0, 0]
    assert came_to(world) == unbroken(2)


@pytest.mark.slow
def test_storage_that_fails_for_one_rank_only(tmp_path):
    """Lost saves of one rank are lost for both and borne; too many in a row end both with 69 and one reason."""
    borne, ended = World.create(tmp_path / "borne"), World.create(tmp_path / "ended")
    patient = train(borne, (CALM, Plan(lost_saves=(5,))))
    both = train(ended, (CALM, Plan(lost_saves=tuple(range(5, 41, 5)))))

    assert codes(patient) == [0, 0]
    assert 5 not in borne.saved()
    assert codes(both) == [69, 69]
    assert "model-1.safetensors: injected" in both[0].reason
    assert ended.saved() == []


@pytest.mark.slow
def test_shards_are_loaded_by_one_process(unbroken, tmp_path):
    """What FSDP2 has saved is a checkpoint like others: complete, with names and shapes of one process."""
    world = World.create(tmp_path)
    assert codes(train(world, (CALM, Plan(stop_at_step=20)), SHARDED)) == [75, 75]
    config = load_config(path=world.folder / "run.toml", overrides=(f"run_uri={world.run}",)).config
    names = {stored.name for stored in load_run(config, "last").record.objects}
    step = world.saved()[-1]
    ending = train_alone(world)

    assert {"model-0.safetensors", "model-1.safetensors", "optimizer-0.safetensors"} <= names
    assert (ending.code, ending.summary["step"]) == (0, 40)
    assert [event["step"] for event in world.history() if event["event"] == "run started"] == [0, step]


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_one_ranks_share_that_is_no_number(tmp_path, spread):
    """A NaN on one rank is skipped by all, and they go back together; without leave to, all end with 70."""
    settings = (f"runtime.parallel={spread}", "training.max_nonfinite_steps=3")
    bad = Plan(bad_data=range(12, 20), harm="share")
    world, hopeless = World.create(tmp_path / "world"), World.create(tmp_path / "hopeless")

    assert codes(train(world, (CALM, bad), *settings)) == [0, 0]
    assert [event["event"] for event in world.history()].count("rolled back") == 2
    assert codes(train(hopeless, (CALM, bad), *settings, "training.max_rollbacks=0")) == [70, 70]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
@pytest.mark.parametrize("step", [0, 7, 18, 33])
def test_a_clean_stop(unbroken, tmp_path, ranks, spread, step):
    """Stopped by the last rank at this step and continued by as many: equal to the unbroken run, bit for bit."""
    world, settings = World.create(tmp_path), (f"runtime.parallel={spread}",)
    plans = ((ranks - 1) * (CALM,)) + (Plan(stop_at_step=step),)

    assert codes(train(world, plans, *settings)) == ranks * [75]
    assert codes(train(world, ranks * (CALM,), *settings)) == ranks * [0]
    assert came_to(world) == unbroken(ranks, *settings)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", [("batch", 3), ("evaluation", 5), ("before put data", 5), ("after put data", 9)])
def test_a_rank_killed_anywhere(unbroken, tmp_path, rank, point):
    """Killed there, the other ends within a minute with a code; together again they end bit-equal."""
    world = World.create(tmp_path)
    plans = [CALM, CALM]
    plans[rank] = Plan(kill_at=point)
    ends = codes(train(world, plans, patience=60))

    assert ends[rank] in (-9, 0)
    assert ends[1 - rank] in (1, 0)
    assert codes(train(world, TWO)) == [0, 0]
    assert came_to(world) == unbroken(2)


@pytest.mark.slow
def test_two_one_two_with_kills(tmp_path):
    """Two processes, one killed; one alone, killed; two again: every step once, losses as those of one process."""
    alone, mixed = World.create(tmp_path / "alone"), World.create(tmp_path / "mixed")
    assert train_alone(alone, *PLAIN).code == 0
    ends = [
        codes(train(mixed, (CALM, Plan(kill_at=("batch", 17))), *PLAIN)),
        codes(train(mixed, (Plan(kill_at=("batch", 14)),), *PLAIN)),
        codes(train(mixed, TWO, *PLAIN)),
    ]
    expected, found = losses(alone), losses(mixed)

    assert ends == [[1, -9], [-9], [0, 0]]
    assert list(found) == list(range(1, 51))
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-5


@pytest.mark.slow
def test_a_rank_that_stands_still(tmp_path):
    """A rank under SIGSTOP gives no sign of life: the other ends within a minute and says so."""
    world = World.create(tmp_path)
    first, _ = train(world, (CALM, Plan(pause_at=("batch", 12))), patience=60)

    assert first.code == 1
    assert "rank 1 is gone: no sign of life" in first.reason


@pytest.mark.slow
def test_uneven_shares(tmp_path):
    """A batch of five on two and on three ranks, one sequence a pass: losses as those of one process."""
    uneven = (*PLAIN, "training.batch_size=5", "training.micro_batch_size=1")
    alone = World.create(tmp_path / "alone")
    assert train_alone(alone, *uneven).code == 0
    expected = losses(alone)
    for ranks, spread in ((2, "ddp"), (3, "ddp"), (2, "fsdp")):
        world = World.create(tmp_path / f"{spread}{ranks}")
        assert codes(train(world, ranks * (CALM,), *uneven, f"runtime.parallel={spread}")) == ranks * [0]
        found = losses(world)

        assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-5, (ranks, spread)
