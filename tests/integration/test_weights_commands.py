"""Weights in and out by command: a run that begins with somebody's weights, and exports that others can read."""

import json
import shutil

import pytest
import torch

import job
from job.config_file import load_config
from job.data.alphabets import ByteTokenizer
from job.data.huggingface_tokenizer import huggingface_files
from job.infra.storage import open_store
from tests.integration.command import UNLINKED, World, assignments, files
from tests.unit.weights_support import model, same, write_huggingface

CACHE = assignments("data.cache_dir=cache")
FINETUNE = ("model.dropout=0.1", "training.max_steps=4", "checkpoint.every=2", "training.eval_every=2")


@pytest.fixture(scope="module")
def ours():
    """A model of bytes that no preset has the shape of."""
    return model(vocab_size=257, n_layer=2, n_head=2, n_embd=8, context_length=16)


@pytest.fixture(scope="module")
def weights(ours, tmp_path_factory):
    """That model as a folder of weights, with the tokenizer."""
    folder = write_huggingface(tmp_path_factory.mktemp("weights"), ours)
    for name, content in huggingface_files(ByteTokenizer(), 16).items():
        (folder / name).write_bytes(content)
    return folder


def finetune(world, run, *settings):
    """Train a run with the settings of quickstart: its shape comes from the run."""
    own = (f"run_uri={run}", "data.corpus=corpus.txt", "data.cache_dir=cache", "observe.metrics_port=none")
    more = ("runtime.device=cpu", "runtime.threads=1", "training.batch_size=4", *FINETUNE, *settings)
    return world.gpt_job("train", *assignments(*own, *more))


@pytest.fixture(scope="module")
def tuned(weights, tmp_path_factory):
    """A world with a run that was imported and then trained for four steps; not to be written to."""
    world = World.create(tmp_path_factory.mktemp("tuned"))
    (world.folder / "run.toml").write_text("")
    imported = world.gpt_job("weights import", "--weights", str(weights), "--run", "fine", "--json")
    shutil.copytree(world.folder / "fine", world.folder / "imported")
    return world, imported, finetune(world, "fine")


def test_an_import_is_a_checkpoint(tuned, ours):
    """The imported run has one checkpoint, of step 0, with the very weights."""
    world, imported, _ = tuned
    listed = json.loads(world.gpt_job("checkpoints list", "--run", "imported", "--json").stdout)

    assert imported.code == 0
    assert [row["step"] for row in listed] == [0]
    assert same(job.load_model(str(world.folder / "imported")), ours)


def test_an_import_is_whole(tuned):
    """checkpoints verify finds nothing wrong with it, nor with the run that it became."""
    world, _, _ = tuned

    assert [world.gpt_job("checkpoints verify", "--run", run).code for run in ("imported", "fine")] == [0, 0]


def test_train_continues_it(tuned, ours):
    """train takes shape and tokenizer from the run, evaluates the weights as they came, and goes on from them."""
    world, _, trained = tuned
    events = [json.loads(line) for line in (world.folder / "fine/events.jsonl").read_bytes().splitlines()]
    evaluated = {event["step"]: event["val_loss"] for event in events if event["event"] == "evaluated"}

    assert trained.code == 0, trained.stderr
    assert (trained.summary["status"], trained.summary["step"]) == ("complete", 4)
    assert sorted(evaluated) == [0, 2, 4]
    assert evaluated[4] < evaluated[0]
    assert not same(job.load_model(str(world.folder / "fine"), "last"), ours)


def test_the_same_command_again_is_complete(tuned):
    """What the first training took over is taken over again, and there is nothing left to do."""
    world, _, _ = tuned

    assert finetune(world, "fine").summary["status"] == "already complete"


def test_a_longer_training_goes_on(tuned, tmp_path):
    """More steps continue from the fourth, with shape and tokenizer as before."""
    world = tuned[0].copy(tmp_path)
    ending = finetune(world, "fine", "training.max_steps=6")

    assert (ending.summary["status"], ending.summary["step"]) == ("complete", 6)


def test_the_first_training_fixes_the_corpus(tuned, tmp_path):
    """Another corpus later is another run: 78, with the corpus named."""
    world = tuned[0].copy(tmp_path)
    (world.folder / "corpus.txt").write_text("another text. " * 500)
    ending = finetune(world, "fine", "training.max_steps=6")

    assert ending.code == 78
    assert "corpus is" in ending.reason


def test_starting_over_leaves_the_weights_behind(tuned, tmp_path):
    """--restart-from-scratch begins with the seed and the settings' own shape, and says which weights it leaves."""
    world = tuned[0].copy(tmp_path)
    own = ("run_uri=fine", "data.corpus=corpus.txt", "data.cache_dir=cache", "training.max_steps=1")
    shape = ("model.n_layer=1", "model.n_embd=16", "model.n_head=2", "data.tokenizer=byte")
    ending = world.gpt_job("train", "--restart-from-scratch", *assignments(*own, *shape))
    (said,) = (line for line in ending.log if line["event"].startswith("the imported weights are left behind"))

    assert ending.code == 0, ending.stderr
    assert said["uri"].endswith("weights0")
    assert job.load_model(str(world.folder / "fine")).config.n_layer == 1


def test_a_shape_asked_for_by_hand(tuned, tmp_path):
    """A shape that is said and is not the weights' is refused by its name, not overruled."""
    world = tuned[0].copy(tmp_path)
    shutil.move(world.folder / "imported", world.folder / "again")
    ending = finetune(world, "again", "model.n_layer=3")

    assert ending.code == 78
    assert "model.n_layer is 2 in the run, 3 here" in ending.reason


def test_importing_again_changes_nothing(tuned, weights, tmp_path):
    """The same weights into the same run are there already, trained on or not."""
    world = tuned[0].copy(tmp_path)
    before = {run: files(world.folder / run) for run in ("imported", "fine")}
    codes = [world.gpt_job("weights import", "--weights", str(weights), "--run", run).code for run in before]

    assert codes == [0, 0]
    assert {run: files(world.folder / run) for run in before} == before


def test_importing_with_a_persons_word_for_conditional_writes(tuned, weights, tmp_path):
    """Where the store has no conditional writes import takes the flag of `train`, and the run is whole."""
    world = tuned[0].copy(tmp_path)
    command = ("weights import", "--weights", str(weights), "--run", "unlinked")
    ending = world.gpt_job(*command, "--single-writer-unsafe", launcher=UNLINKED)

    assert ending.code == 0, ending.stderr
    assert world.gpt_job("checkpoints verify", "--run", "unlinked").code == 0


def test_importing_into_another_run(tuned, tmp_path):
    """Other weights do not take a run's place."""
    world = tuned[0].copy(tmp_path)
    other = write_huggingface(tmp_path / "other", model(vocab_size=257, seed=1))
    for name, content in huggingface_files(ByteTokenizer(), 16).items():
        (other / name).write_bytes(content)
    ending = world.gpt_job("weights import", "--weights", str(other), "--run", "fine")

    assert ending.code == 78
    assert "holds a run of 4 steps that began with" in ending.reason


def test_the_end_of_a_run_is_an_export(tuned):
    """The best checkpoint lies under export/<step>/, as the command would export it."""
    world, _, _ = tuned
    (found,) = (world.folder / "fine/export").iterdir()
    ending = world.gpt_job("weights export", "--run", "fine", "--checkpoint", "best", "--to", "out", "--json")

    assert json.loads(ending.stdout)["step"] == int(found.name)
    assert files(world.folder / "out") == files(found)


def test_an_export_computes_the_same(tuned):
    """What was exported and what is in the run have the same logits, in one line of Python each."""
    world, _, _ = tuned
    (found,) = (world.folder / "fine/export").iterdir()
    tokens = torch.randint(0, 257, (2, 16))

    assert torch.equal(job.load_model(str(found))(tokens), job.load_model(str(world.folder / "fine"))(tokens))


def test_the_card(tuned):
    """The model card says what the run knows: shape, origin, corpus, losses, chain."""
    world, _, _ = tuned
    (found,) = (world.folder / "fine/export").iterdir()
    (row,) = (
        row
        for row in json.loads(world.gpt_job("checkpoints list", "--run", "fine", "--json").stdout)
        if row["step"] == int(found.name)
    )
    card = (found / "README.md").read_text()

    assert all(said in card for said in (row["chain"], f"{row['val_loss']:.6f}", "corpus.txt", "2 heads of 4, width 8"))


def test_weights_without_a_run(tuned, weights):
    """generate and evaluate take weights in the place of a run, and say of the imported run the same."""
    world, _, _ = tuned
    measured = {}
    for of in (("--weights", str(weights)), ("--run", "imported")):
        said = world.gpt_job("evaluate", *of, "--corpus", "corpus.txt", "--json", *CACHE)
        drawn = world.gpt_job("generate", *of, "--prompt", "line", "--max-new-tokens", "8", "--json")
        measured[of[0]] = json.loads(said.stdout), json.loads(drawn.stdout)["tokens"]

    assert measured["--weights"] == measured["--run"]


@pytest.fixture
def in_a_bucket(weights, s3_environment):
    """The weights as objects below an address."""
    address = s3_environment.fresh_uri()
    store = open_store(address, load_config().config.storage)
    for path in weights.iterdir():
        store.put(path.name, [path.read_bytes()])
    return address


def test_weights_in_a_bucket(in_a_bucket, s3_environment, ours, tmp_path):
    """Weights come from a bucket, become a run in it, and are exported into it."""
    world = World.create(tmp_path / "world", s3_environment.environ)
    run, out = s3_environment.fresh_uri(), s3_environment.fresh_uri()
    codes = [
        world.gpt_job("weights import", "--weights", in_a_bucket, "--run", run, *CACHE).code,
        world.gpt_job("weights export", "--run", run, "--to", out).code,
        world.gpt_job("weights export", "--run", run, "--to", "here").code,
    ]

    assert codes == [0, 0, 0]
    assert same(job.load_model(out), ours)
    assert same(job.load_model(run), ours)
    assert same(job.load_model(str(world.folder / "here")), ours)


@pytest.mark.parametrize("which", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_end_with_65(tmp_path, weights, world, which):
    """A pickle as weights ends the command with 65 and the way to convert it."""
    folder = tmp_path / "pickled"
    shutil.copytree(weights, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / which)
    ending = world.gpt_job("weights import", "--weights", str(folder), "--run", "fine")

    assert ending.codes == {65}
    assert "save_pretrained" in ending.reason


def test_what_gpt2_cannot_express(tmp_path, world):
    """A run that GPT-2's format cannot hold ends with an export under our names, says why, and loads."""
    ending = world.train("model.final_norm=false", "training.max_steps=2")
    (found,) = (world.run / "export").iterdir()

    assert ending.events("exported under our own names: GPT-2's format cannot express this model")[0]["reasons"] == [
        "there is no norm before the head"
    ]
    assert same(job.load_model(str(found)), job.load_model(str(world.run)))


def test_an_export_that_fails_ends_no_run(world):
    """A run whose export cannot be written is complete, and says how to make it."""
    (world.run).mkdir()
    (world.run / "export").write_text("no folder can be made here")
    ending = world.train("training.max_steps=2")

    assert (ending.code, ending.summary["status"]) == (0, "complete")
    assert "gpt-job weights export --run run" in ending.events("not exported")[0]["by_hand"]
