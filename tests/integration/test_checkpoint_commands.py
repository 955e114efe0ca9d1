"""`checkpoints verify`, `prune` and `diff` as a person types them, on real runs."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.command import SLOW, UNHURRIED, UNLINKED, Ending, World, files, flip_bit, two_at_a_time
from tests.integration.test_s3_run import Remote, remote

KEPT = ("checkpoint.keep_last=20",)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory) -> World:
    """A finished run whose settings keep every checkpoint; not to be written to."""
    world = World.create(tmp_path_factory.mktemp("roomy"))
    assert world.train(*KEPT).code == 0
    return world


def answer(ending: Ending) -> Any:
    """The JSON that a command printed."""
    return json.loads(ending.stdout)


def newest(world: World, pattern: str):
    """The file of this pattern with the highest step."""
    return sorted(world.run.glob(pattern))[-1]


# verify


def test_verify_of_a_whole_run(roomy):
    """A run that nothing happened to is valid, part by part, and verifying it writes nothing."""
    before = files(roomy.run)
    ending = roomy.gpt_job("checkpoints verify", "--json")
    report = answer(ending)

    assert ending.code == 0
    assert list(report) == ["run_uri", "valid", "run", "log", "history", "checkpoints", "leftovers"]
    assert (report["valid"], report["log"]) == (True, {"records": 10, "problems": []})
    assert [(row["step"], row["valid"], row["problems"]) for row in report["checkpoints"]] == [
        (step, True, []) for step in range(5, 45, 5)
    ]
    assert files(roomy.run) == before


def test_verify_of_a_pruned_run_reads_the_whole_history(finished):
    """The events of checkpoints that are gone are read back too."""
    report = answer(finished.world.gpt_job("checkpoints verify", "--json"))

    assert [row["step"] for row in report["checkpoints"]] == [35, 40]
    assert report["history"] == {"segments": 6, "problems": []}


def test_verify_for_people(finished):
    """A line for each part, and the verdict under them."""
    lines = finished.world.gpt_job("checkpoints verify").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["run.json", "log", "history", "step", "step", "VALID"]


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path) -> None:
    path.unlink()


DAMAGES: dict[str, tuple[str, Callable, str]] = {
    "model flipped": ("data/*/s000000000040/model.safetensors", flip_bit, "sha256"),
    "optimizer cut": ("data/*/s000000000040/optimizer.safetensors", cut, "size"),
    "state flipped": ("data/*/s000000000040/state.json", flip_bit, "sha256"),
    "tokenizer gone": ("data/*/s000000000040/tokenizer.json", delete, "missing"),
    "events flipped": ("events/*/s000000000040.jsonl", flip_bit, "sha256"),
    "events of the past gone": ("events/*/s000000000010.jsonl", delete, "missing"),
    "record flipped": ("log/000000000004.json", flip_bit, "record"),
    "record gone": ("log/000000000004.json", delete, "record"),
    "run.json gone": ("run.json", delete, "missing"),
}


@pytest.fixture(scope="module")
def damaged(finished, tmp_path_factory):
    """What verify said after each of DAMAGES was done to a run of its own, and where."""

    def look(name):
        pattern, spoil, _ = DAMAGES[name]
        world = finished.world.copy(tmp_path_factory.mktemp("damaged"))
        path = newest(world, pattern)
        spoil(path)
        return str(path.relative_to(world.run)), world.gpt_job("checkpoints verify", "--json")

    return two_at_a_time(look, {name: name for name in DAMAGES})


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_the_damage(damaged, name):
    """One damage is one problem, with its place, and the command ends with 65 after it has printed the report."""
    where, ending = damaged[name]
    report = answer(ending)
    parts = [report["run"], report["log"], report["history"], *report["checkpoints"]]

    assert ending.codes == {65}
    assert [(p["what"], p["where"]) for part in parts for p in part["problems"]] == [(DAMAGES[name][2], where)]
    assert not report["valid"]
    assert where in ending.reason


def test_verify_says_which_checkpoint_is_damaged(damaged):
    """Only the one with the damage is not valid."""
    _, ending = damaged["model flipped"]

    assert [(row["step"], row["valid"]) for row in answer(ending)["checkpoints"]] == [(35, True), (40, False)]


def test_verify_of_one_checkpoint(finished, tmp_path):
    """--checkpoint leaves the others alone: a damaged one is not looked at."""
    world = finished.world.copy(tmp_path)
    flip_bit(newest(world, "data/*/s000000000035/model.safetensors"))
    ending = world.gpt_job("checkpoints verify", "--json", "--checkpoint", "best")

    assert ending.code == 0
    assert [row["step"] for row in answer(ending)["checkpoints"]] == [40]


def test_verify_notices_a_log_without_its_end(finished, tmp_path):
    """Records lost from the end leave no gap, but people were told of the newest checkpoint."""
    world = finished.world.copy(tmp_path)
    records = sorted((world.run / "log").iterdir())
    last = next(path for path in reversed(records) if json.loads(path.read_bytes())["kind"] == "checkpoint")
    for path in records[records.index(last) :]:
        path.unlink()
    ending = world.gpt_job("checkpoints verify", "--json")

    assert ending.code == 65
    assert [p["where"] for p in answer(ending)["log"]["problems"]] == [f"log/{last.name}"]


def test_verify_lists_leftovers(killed, tmp_path):
    """What a cut save of an earlier attempt left behind is listed, and is no damage."""
    world = killed.world.copy(tmp_path)
    left = world.run / "data/0000000000-dead/s000000000009/model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    ending = world.gpt_job("checkpoints verify", "--json")

    assert ending.code == 0
    assert answer(ending)["leftovers"] == ["data/0000000000-dead/s000000000009/model.safetensors"]


@pytest.mark.parametrize("command", ["verify", "prune --dry-run", "diff last"])
def test_there_is_no_run(world, command):
    """An address without a run is not found."""
    assert world.gpt_job(f"checkpoints {command}").codes == {66}


# prune


def test_prune_shows_what_it_would_do(roomy):
    """--dry-run names what would go by the settings asked for, and writes nothing at all."""
    before = files(roomy.run)
    report = answer(roomy.gpt_job("checkpoints prune", "--dry-run", "--json", "--keep-last", "3", "--keep-every", "10"))

    assert [row["step"] for row in report["removed"]] == [5, 15, 25]
    assert [row["step"] for row in report["kept"]] == [10, 20, 30, 35, 40]
    assert (report["verified"], report["objects"], report["dry_run"]) == ([40, 35], 12, True)
    assert files(roomy.run) == before


def test_prune_keeps_what_the_run_keeps(roomy):
    """Without flags the run's own settings hold; with nothing to remove nothing is written, not even a fence."""
    before = files(roomy.run)
    ending = roomy.gpt_job("checkpoints prune")

    assert ending.code == 0
    assert ending.stdout.endswith("nothing to remove: nothing was written\n")
    assert files(roomy.run) == before


def test_prune_removes_what_it_showed(roomy, tmp_path):
    """What --dry-run named is gone, what stays is valid, and the run is as complete as it was."""
    world = roomy.copy(tmp_path)
    keep = ("--json", "--keep-last", "2", "--no-keep-best")
    shown = answer(world.gpt_job("checkpoints prune", "--dry-run", *keep))
    done = answer(world.gpt_job("checkpoints prune", *keep))
    left = answer(world.gpt_job("checkpoints verify", "--json"))

    assert done == {**shown, "dry_run": False, "taken_over": True}
    assert [row["step"] for row in left["checkpoints"]] == [35, 40]
    assert (left["valid"], left["leftovers"]) == (True, [])
    assert sorted({path.parent.name for path in world.run.glob("data/*/*/*")}) == ["s000000000035", "s000000000040"]
    assert world.train(*KEPT).summary["status"] == "already complete"


def test_prune_removes_nothing_unless_two_can_be_read_back(roomy, tmp_path):
    """With one of the two that would stay damaged: 65, and neither a fence nor anything else was written."""
    world = roomy.copy(tmp_path)
    flip_bit(newest(world, "data/*/s000000000035/model.safetensors"))
    before = files(world.run)
    ending = world.gpt_job("checkpoints prune", "--keep-last", "2", "--no-keep-best")

    assert ending.codes == {65}
    assert "1 of those that would stay can be read back" in ending.reason
    assert files(world.run) == before


def test_prune_takes_a_persons_word_for_conditional_writes(roomy, tmp_path):
    """Where the store has no conditional writes prune refuses, names the flag of `train`, and takes it."""
    world = roomy.copy(tmp_path)
    command = ("checkpoints prune", "--json", "--keep-last", "7")
    refused = world.gpt_job(*command, launcher=UNLINKED)
    done = world.gpt_job(*command, "--single-writer-unsafe", launcher=UNLINKED)

    assert refused.codes == {78}
    assert "--single-writer-unsafe" in refused.reason
    assert [row["step"] for row in answer(done)["removed"]] == [5]


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A run that was pruned while a job trained on it, and trained to its end afterwards."""
    world = World.create(tmp_path_factory.mktemp("taken"))
    with world.training(*SLOW, *KEPT, "training.sample_tokens=300", launcher=UNHURRIED) as job:
        job.until("checkpoint saved", step=20)
        job.process.send_signal(signal.SIGSTOP)  # or it might end before prune has begun
        pruned = world.gpt_job("checkpoints prune", "--json", "--keep-last", "2", "--no-keep-best")
        job.process.send_signal(signal.SIGCONT)
        lost = job.ending()
    left = [row["step"] for row in answer(world.gpt_job("checkpoints list", "--json"))]
    return world, pruned, lost, left, world.train(*KEPT)


def test_a_job_that_trains_loses_the_run_to_prune(taken):
    """The fence of prune ends the job at its next save with 73."""
    _, pruned, lost, left, _ = taken

    assert (pruned.code, lost.codes) == (0, {73})
    assert left == [row["step"] for row in answer(pruned)["kept"]]
    assert "taking the run over" in pruned.stderr


def test_a_pruned_run_goes_on_bit_for_bit(taken, finished):
    """Continued after a prune: the same chain as a run that nothing disturbed, each step logged once."""
    world, _, _, _, ending = taken

    assert ending.summary["chain"] == finished.ending.summary["chain"]
    assert [line["step"] for line in world.history() if line["event"] == "step"] == list(range(5, 45, 5))


def test_maintenance_is_no_attempt(taken):
    """The fence says what it is for, and the job that goes on counts as the second attempt."""
    world, _, _, _, ending = taken
    fences = [record.get("maintenance", False) for record in world.records() if record["kind"] == "fence"]

    assert fences == [False, True, False]
    assert [line["attempt"] for line in ending.events("run continued")] == [2]
    assert "pretrain_restarts_total 1.0" in world.metrics()


# diff


def test_diff_of_a_checkpoint_with_itself(roomy):
    """Everything is compared, nothing differs: EQUAL."""
    report = answer(roomy.gpt_job("checkpoints diff", "last", "--json"))

    assert report["equal"]
    assert {kind: (found["compared"], found["different"]) for kind, found in report["tensors"].items()} == {
        "model": (16, []),
        "optimizer": (48, []),
    }
    assert not any(report["fields"].values())


def test_diff_of_two_steps(roomy):
    """Tensors, state and record of another step differ; the losses that led there do not."""
    ending = roomy.gpt_job("checkpoints diff", "20", "40", "--json")
    report = answer(ending)
    row = next(row for row in report["tensors"]["optimizer"]["different"] if row["name"] == "wte.weight.step")

    assert (ending.code, report["equal"]) == (0, False)
    assert (row["first"], row["elements"], row["unequal"], row["max_difference"]) == ("F32 []", 1, 1, 20.0)
    assert report["fields"]["state"]["step"] == report["fields"]["record"]["step"] == [20, 40]
    assert report["history"] == {"logged_by_both": 4, "equal_up_to_step": 20, "first_difference": None}


def test_diff_of_a_run_that_was_killed_with_one_that_was_not(taken, finished):
    """Taken over, continued and finished is EQUAL to undisturbed, tensor by tensor."""
    world, other = taken[0], finished.world
    ending = world.gpt_job("checkpoints diff", "--with-run", str(other.run), "--exit-code")

    assert ending.code == 0
    assert ending.stdout.endswith("EQUAL\n")
    assert "\n  checkpoint.keep_last: 20 | 2\n" in ending.stdout


@pytest.fixture(scope="module")
def bent(killed, tmp_path_factory):
    """A run that was killed after step 15 and went on with another learning rate."""
    world = killed.world.copy(tmp_path_factory.mktemp("bent"))
    assert world.train("optimizer.learning_rate=0.004").code == 0
    return world


def test_diff_says_since_which_step(bent, finished):
    """The first logged step whose loss is another, and the setting that is."""
    report = answer(finished.world.gpt_job("checkpoints diff", "--with-run", str(bent.run), "--json"))
    history = report["history"]

    assert not report["equal"]
    assert report["fields"]["config"]["optimizer.learning_rate"] == [0.002, 0.004]
    assert (history["equal_up_to_step"], history["first_difference"]["step"]) == (15, 20)
    assert len(set(history["first_difference"]["loss"])) == 2


def test_diff_can_end_with_1(bent, finished):
    """--exit-code tells a script that they differ, in every place that says how a command ended."""
    ending = finished.world.gpt_job("checkpoints diff", "--with-run", str(bent.run), "--exit-code")

    assert ending.codes == {1}
    assert ending.stdout.endswith("DIFFERENT\n")


def test_diff_of_a_damaged_checkpoint(finished, tmp_path):
    """Nothing is said about bytes that are not those of the record: 65."""
    world = finished.world.copy(tmp_path)
    flip_bit(newest(world, "data/*/s000000000040/optimizer.safetensors"))

    assert world.gpt_job("checkpoints diff", "35", "40").codes == {65}


def test_diff_wants_two(finished):
    """Without a checkpoint or another run there is nothing to compare: usage."""
    assert finished.world.gpt_job("checkpoints diff").codes == {2}


# in a bucket


@pytest.fixture(scope="module")
def in_bucket(s3_server, tmp_path_factory) -> Remote:
    """A finished run on a real S3 server that kept every checkpoint, pruned to the last two."""
    place = remote(s3_server, tmp_path_factory.mktemp("bucket"))
    assert place.world.train(*place.settings, *KEPT).code == 0
    assert place.at("checkpoints prune", "--keep-last", "2", "--no-keep-best").code == 0
    return place


def test_verify_and_prune_in_a_bucket(in_bucket):
    """The run that was pruned there is whole, with two checkpoints and nothing left over."""
    report = answer(in_bucket.at("checkpoints verify", "--json"))

    assert (report["valid"], report["leftovers"]) == (True, [])
    assert [row["step"] for row in report["checkpoints"]] == [30, 40]
    assert sum(key.startswith("data/") for key in in_bucket.objects()) == 8


def test_diff_of_a_bucket_with_a_folder(in_bucket, finished):
    """A run in a bucket and the same one in a folder are EQUAL."""
    ending = in_bucket.at("checkpoints diff", "--with-run", str(finished.world.run), "--exit-code")

    assert ending.code == 0
    assert ending.stdout.endswith("EQUAL\n")


def test_verify_finds_damage_in_a_bucket(in_bucket):
    """An object that was overwritten with as many other bytes is named."""
    key = next(key for key in in_bucket.objects() if key.endswith("s000000000030/model.safetensors"))
    prefix = in_bucket.uri.removeprefix(f"s3://{in_bucket.server.bucket}/")
    body = bytes(len(in_bucket.objects()[key]))
    in_bucket.server.client().put_object(Bucket=in_bucket.server.bucket, Key=f"{prefix}/{key}", Body=body)
    ending = in_bucket.at("checkpoints verify")

    assert ending.codes == {65}
    assert f"sha256: {key}: expected" in ending.stdout
