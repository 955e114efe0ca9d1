"""The training package: what a step changes, what leaves it alone, and what is kept of a run."""

import itertools
import json
import math
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from job.checkpoint.events import Segment
from job.checkpoint.files import MODEL, OPTIMIZER, STATE
from job.checkpoint.record import Record
from job.checkpoint.verify import Rejected
from job.config import OptimizerConfig, RuntimeConfig, TrainingConfig
from job.data.alphabets import ByteTokenizer
from job.data.loader import Batch
from job.data.order import DataOffset
from job.errors import DivergedError
from job.infra.device import choose_numerics
from job.infra.progress import SilentProgress
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from job.model.gpt import GPT
from job.pretrain import pretrain
from job.training import evaluation
from job.training.evaluation import Evaluator, SplitLoss
from job.training.learner import Learner, build_learner
from job.training.ledger import StepLedger
from job.training.optimizer import build_optimizer
from job.training.randomness import seed_for, seed_torch
from job.training.sampling import Sampler
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState, restore
from job.training.tensors import model_tensors, optimizer_tensors, to_safetensors
from job.training.text import read_text
from tests.chaos.harness import tiny, write_corpus

CPU = torch.device("cpu")
V, T = ByteTokenizer.vocab_size, 64  # of the tiny model
PRECISIONS = ["fp32", "bf16", "fp16"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tiny run sets torch to one thread; other tests get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus, tmp_path):
    """Settings of the tiny run, each test's in a folder of its own."""

    def with_settings(*settings):
        return tiny(f"{tmp_path}/run", corpus, *settings).config

    return with_settings


@pytest.fixture
def learner(config):
    """A tiny learner, fresh or with room for stored tensors."""

    def build(*settings, restoring=False):
        chosen = config(*settings)
        return build_learner(chosen, choose_numerics(chosen.runtime, None), V, restoring)

    return build


def batch(rows=4, seed=0):
    tokens = torch.randint(V, (rows, T + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:], b"")


def step(learner, seed=0, rows_per_pass=4):
    """One update, as the trainer makes it; its loss."""
    seed_torch(CPU, seed_for("step", seed))
    loss = learner.backward(batch(seed=seed), rows_per_pass)
    learner.update(loss, 1e-3, 1.0)
    return float(loss)


def copied(tensors):
    return HostMemory().copy(tensors.items())


def tensors(learner):
    return copied(model_tensors(learner.model) | optimizer_tensors(learner.model, learner.optimizer))


def unequal(found, expected):
    """Names of the tensors that are not equal to the bit, or are only in one of the two."""
    both = found.keys() & expected.keys()
    return sorted(
        (found.keys() ^ expected.keys()) | {name for name in both if not torch.equal(found[name], expected[name])}
    )


@pytest.mark.parametrize("rows_per_pass", [1, 2, 3, 4])
def test_a_batch_in_passes_has_the_gradients_of_the_whole(learner, rows_per_pass):
    """Five sequences cut into passes, the last one smaller: gradients and loss of all five at once."""
    found, expected = learner("model.dropout=0"), learner("model.dropout=0")
    losses = found.backward(batch(5), rows_per_pass), expected.backward(batch(5), 5)
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (found.model, expected.model)]

    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.fixture
def plain_update(learner):
    """The gradients of a batch, what plain descent at rate 1 then changes, and the norm that `update` says."""

    def update(clip_norm):
        descending = learner()
        descending = replace(descending, optimizer=torch.optim.SGD(descending.model.parameters(), fused=True))
        loss = descending.backward(batch(), 4)
        before = copied(model_tensors(descending.model))
        gradients = {name: p.grad.clone() for name, p in descending.model.named_parameters()}
        norm = descending.update(loss, 1.0, clip_norm)
        return gradients, {name: before[name] - p for name, p in model_tensors(descending.model).items()}, float(norm)

    return update


@pytest.mark.parametrize("clip_norm", [None, 100.0])
def test_gradients_within_the_norm_are_used_as_they_are(plain_update, clip_norm):
    """Without clipping, or below its norm, the update is the gradient."""
    gradients, changes, _ = plain_update(clip_norm)

    torch.testing.assert_close(changes, gradients, rtol=0, atol=1e-6)


def test_clipping_scales_all_gradients_together(plain_update):
    """Above the norm every gradient shrinks by one factor, to the norm that was asked for."""
    gradients, changes, norm = plain_update(0.1)

    torch.testing.assert_close(
        changes, {name: gradient * 0.1 / norm for name, gradient in gradients.items()}, rtol=1e-3, atol=1e-6
    )


def test_the_norm_that_is_told_is_the_one_before_clipping(plain_update):
    """`update` returns the norm of all gradients together, unclipped."""
    gradients, _, norm = plain_update(0.1)

    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients.values()]).norm()), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_norm_does_not_depend_on_precision(learner, precision):
    """In half precision it is that of float32, but for rounding; fp16's scale is out of it."""
    norms = [
        float(one.update(one.backward(batch(), 4), 1e-3, 1.0))
        for one in (learner("model.dropout=0"), learner("model.dropout=0", f"runtime.precision={precision}"))
    ]

    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_in_every_precision(learner, precision):
    """A step changes parameters, which stay float32, and its loss is near that of knowing nothing."""
    trained = learner(f"runtime.precision={precision}")
    before = copied(model_tensors(trained.model))
    loss = step(trained)

    assert loss == pytest.approx(math.log(V), abs=0.1)
    assert unequal(copied(model_tensors(trained.model)), before) == sorted(before)
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}


@contextmanager
def broken_loss(model):
    """Logits, and with them loss and gradients, are NaN."""
    hook = model.register_forward_hook(lambda *seen: seen[-1] * math.nan)
    yield
    hook.remove()


@contextmanager
def broken_gradient(model):
    """One gradient is infinite; the loss is fine."""
    hook = model.h[0].mlp.c_fc.bias.register_hook(lambda gradient: gradient * math.inf)
    yield
    hook.remove()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("broken", [broken_loss, broken_gradient])
def test_a_step_that_is_not_finite_changes_nothing(learner, precision, broken):
    """Parameters, moments and AdamW's step counters are, to the bit, those of before."""
    trained = learner(f"runtime.precision={precision}")
    step(trained)
    before = tensors(trained)
    with broken(trained.model):
        step(trained, seed=1)

    assert unequal(tensors(trained), before) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loss_that_is_not_finite_is_enough(learner, precision):
    """An infinite loss skips the update though its gradients are finite: a target of probability 0 gives such."""
    trained = learner(f"runtime.precision={precision}")
    step(trained)
    before = tensors(trained)
    trained.update(trained.backward(batch(), 4) * math.inf, 1e-3, 1.0)

    assert unequal(tensors(trained), before) == []


def test_training_goes_on_after_a_skipped_step(learner):
    """The step after one that was skipped is, to the bit, what it would have been without it."""
    found, expected = learner(), learner()
    step(found)
    step(expected)
    with broken_loss(found.model):
        step(found, seed=1)
    step(found, seed=2)
    step(expected, seed=2)

    assert unequal(tensors(found), tensors(expected)) == []


@pytest.fixture
def run(corpus, tmp_path):
    """Trains the tiny run in this process to its end; its events."""

    def train(*settings, name="run"):
        resolved = tiny(f"{tmp_path}/{name}", corpus, "observe.report=false", *settings)
        pretrain(resolved, StopSignal(30.0), SilentProgress(), RunStatus())
        return [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]

    return train


def test_waiting_for_results_is_training(run, monkeypatch):
    """On a GPU a step is only launched, and takes its time when its loss is read: that counts, and ends the run."""
    fold = StepLedger.fold

    def folded(self):
        time.sleep(0.05)
        return fold(self)

    monkeypatch.setattr(StepLedger, "fold", folded)
    events = run("observe.log_every=1", "training.max_steps=1000", "training.max_seconds=0.5")

    assert 1 <= max(event["step"] for event in events if event["event"] == "step") <= 0.5 / 0.05


@pytest.fixture
def break_steps(monkeypatch):
    """Makes the loss of these steps NaN, or only one of their gradients."""

    def break_these(steps, what="loss"):
        backward, numbers = Learner.backward, itertools.count(1)

        def broken(self, *arguments):
            loss = backward(self, *arguments)
            if next(numbers) not in steps:
                return loss
            if what == "loss":
                return loss * math.nan
            self.model.wte.weight.grad[0, 0] = math.nan
            return loss

        monkeypatch.setattr(Learner, "backward", broken)

    return break_these


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skipped_steps_are_counted(run, break_steps, tmp_path, what):
    """Each has its event with its place in the row, and the state keeps their number."""
    break_steps({3, 4, 20}, what)
    skipped = [(event["step"], event["in_a_row"]) for event in run() if event["event"] == "step skipped"]
    (stored,) = tmp_path.glob(f"run/data/*/s{40:012d}/{STATE}")

    assert skipped == [(3, 1), (4, 2), (20, 1)]
    assert json.loads(stored.read_bytes())["nonfinite_steps"] == 3


def test_looking_does_not_change_training(run):
    """Evaluated and sampled at every step or never in between: the same loss at every step, to the bit."""

    def losses(name, *settings):
        events = run("training.max_steps=10", "observe.log_every=1", *settings, name=name)
        return [event["loss"] for event in events if event["event"] == "step"]

    often = losses("often", "training.eval_every=1", "training.sample_every=1", "training.sample_temperature=1")

    assert often == losses("seldom", "training.eval_every=10")


def test_each_step_of_a_run_has_randomness_of_its_own(run, monkeypatch):
    """Every step starts from another seed, and from the same one whatever was drawn before."""
    seeds, backward = [], Learner.backward

    def noted(self, *arguments):
        seeds.append(torch.initial_seed())
        return backward(self, *arguments)

    monkeypatch.setattr(Learner, "backward", noted)
    for name in ("first", "second"):
        run("training.max_steps=5", name=name)

    assert seeds[:5] == seeds[5:]
    assert len(set(seeds)) == 5


def test_a_saved_step_is_not_saved_again(run):
    """The last step is due and the end as well: one checkpoint."""
    steps = [event["step"] for event in run("training.max_steps=10") if event["event"] == "checkpoint saved"]

    assert steps == [5, 10]


def test_a_step_draws_the_same_whatever_came_before():
    """The dropout of a step is its own, in any order of steps."""

    def dropped(number):
        seed_torch(CPU, seed_for(1337, "step", number, 0))
        return F.dropout(torch.ones(64), 0.5).tolist()

    forwards = [dropped(number) for number in range(5)]

    assert [dropped(number) for number in reversed(range(5))] == forwards[::-1]


def test_seeds_depend_on_every_part():
    """Run, purpose, step and rank, and where one part ends: none is another's seed."""
    parts = [(1, "step", 2, 0), (2, "step", 2, 0), (1, "sample", 2, 0), (1, "step", 3, 0), (1, "step", 2, 1)]
    parts += [(1, 23), (12, 3), (123,)]

    assert len({seed_for(*what) for what in parts}) == len(parts)


@pytest.fixture
def text(config):
    """The tiny run's settings and text."""

    def read(*settings):
        chosen = config(*settings)
        return chosen, read_text(chosen, lambda _: None, lambda *_: None)

    return read


def starts(text, batches, split="train"):
    config, read = text
    return read.evaluation_sets(config, batches)[split].starts.tolist()


@pytest.mark.parametrize("order", ["windows", "random"])
def test_evaluation_windows_are_fixed(text, order):
    """Two batches of four are the same eight windows whenever they are asked for, and not those of training."""
    found = [text(f"data.order={order}") for _ in range(2)]
    _, read = found[0]

    assert starts(found[0], 2) == starts(found[1], 2) != read.order.starts(np.arange(8)).tolist()
    assert len(starts(found[0], 2)) == 8


@pytest.mark.parametrize("order", ["windows", "random"])
def test_a_whole_split_is_every_window_once(text, order):
    """Without a number of batches all windows are measured, one after the other, whatever order training has."""
    _, read = found = text(f"data.order={order}")

    assert sorted(starts(found, None)) == list(range(0, read.files.train.tokens - T, T))


def test_bytes_per_token(text):
    """An evaluation set knows how many bytes of text a token stands for: one, in the byte tokenizer."""
    config, read = text()

    assert [chosen.bytes_per_token for chosen in read.evaluation_sets(config, 1).values()] == [1.0, 1.0, 1.0]


@pytest.fixture
def measured(text, learner):
    """A set of eight windows, the tiny model with dropout, and the model's loss on them as a formula."""
    config, read = text()
    chosen, model = read.evaluation_sets(config, 2)["train"], learner("model.dropout=0.5").model
    windows = torch.from_numpy(chosen.tokens.windows(chosen.starts, T + 1))
    with torch.no_grad():
        probabilities = model.eval()(windows[:, :-1]).softmax(-1).gather(-1, windows[:, 1:, None])
    return chosen, model.train(), -float(probabilities.log().mean())


def evaluator(chosen, **options):
    return Evaluator({"train": chosen}, choose_numerics(RuntimeConfig(device="cpu"), None), CPU, **options)


def test_the_loss_of_a_split(measured):
    """It is the mean of -log p over every target of the windows, without dropout."""
    chosen, model, expected = measured
    found = evaluator(chosen).measure(model, "train")

    assert (found.loss, found.tokens) == (pytest.approx(expected, abs=1e-6), 8 * T)


def test_the_loss_does_not_depend_on_passes(measured, monkeypatch):
    """Three windows at a time, the last pass smaller, and all at once cost the same."""
    chosen, model, expected = measured
    monkeypatch.setattr(evaluation, "_PASS_BYTES", 0)
    passes = []
    found = evaluator(chosen, rows_at_least=3, advance=lambda *_: passes.append(3)).measure(model, "train")

    assert len(passes) == 3
    assert found.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_model_in_its_mode(measured, training):
    """Training goes on in training mode, and use in evaluation mode."""
    chosen, model, _ = measured
    evaluator(chosen).measure(model.train(training), "train")

    assert model.training is training


def test_bits_per_byte():
    """Three bits a token of one and a half bytes are two bits a byte."""
    assert SplitLoss(3 * math.log(2), 100, 1.5).bits_per_byte == pytest.approx(2)


def test_bits_per_byte_of_unknown_text():
    """Where the bytes behind the tokens are not known there is no figure, and no error."""
    assert SplitLoss(1.0, 100, 0).bits_per_byte is None


@pytest.mark.parametrize(("loss", "perplexity"), [(math.log(50257), 50257), (1000.0, math.inf)])
def test_perplexity(loss, perplexity):
    """It is exp(loss), or infinite where no float holds that."""
    assert SplitLoss(loss, 100, 1.0).perplexity == pytest.approx(perplexity)


@pytest.fixture
def draw(learner):
    """What the tiny model writes at a step."""
    model = learner().model

    def at(step, temperature=1.0):
        training = TrainingConfig(max_steps=1, sample_tokens=20, sample_temperature=temperature)
        prompt = ByteTokenizer().encode("line 4").tolist()
        return Sampler(training, ByteTokenizer(), prompt, 1337, CPU).draw(model, step)

    return at


def test_a_sample_goes_on_from_the_prompt(draw):
    """The prompt and what follows it come apart."""
    prompt, continuation = draw(1)

    assert prompt == "line 4"
    assert continuation


def test_samples_repeat(draw):
    """A step's sample is the same whenever it is drawn, and no other step's."""
    assert draw(1) == draw(1) != draw(2)


def test_greedy_samples_do_not_depend_on_the_step(draw):
    """At temperature 0 only the model decides."""
    assert draw(1, temperature=0.0) == draw(2, temperature=0.0)


def test_looking_draws_nothing_from_training(draw, measured):
    """A sample and an evaluation leave torch's own generator where it was."""
    chosen, model, _ = measured
    before = torch.get_rng_state()
    draw(1)
    evaluator(chosen).measure(model, "train")

    assert torch.equal(torch.get_rng_state(), before)


STOOD = TrainingState(
    step=2,
    seconds=0.1,
    data_offsets=[DataOffset(step=0, samples=8)],
    nonfinite_in_a_row=1,
    nonfinite_steps=3,
    val_loss=5.4,
)


RECORD = Record("checkpoint", 2, 1, "one", {"step": 2, "chain": STOOD.chain, "data_offset": 8})


def snapshot_of(trained, memory, state=STOOD):
    return take_snapshot(memory, state, trained, tokenizer=b"{}", events=Segment(b"", 0), facts={})


def files_of(trained):
    return snapshot_of(trained, HostMemory()).checkpoint().files


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(b"".join(content))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_checkpoint_restores_everything(learner, tmp_path, precision):
    """State, parameters, moments and scaler come back to the bit, and so does the next step."""
    saved = learner(f"runtime.precision={precision}")
    for number in range(2):
        step(saved, number)
    write(tmp_path, files_of(saved))
    restored = learner(f"runtime.precision={precision}", restoring=True)
    state = restore(tmp_path, RECORD, restored)

    assert (state, unequal(tensors(restored), tensors(saved))) == (STOOD, [])
    assert restored.scaler.state_dict() == saved.scaler.state_dict()
    assert step(restored, 2) == step(saved, 2)
    assert unequal(tensors(restored), tensors(saved)) == []


def test_a_checkpoint_before_the_first_step(learner, tmp_path):
    """Optimizer state that does not exist yet comes back as none."""
    write(tmp_path, files_of(learner()))
    restored = learner(restoring=True)
    restore(tmp_path, RECORD, restored)

    assert len(restored.optimizer.state) == 0


def test_a_checkpoint_is_frozen(learner):
    """Steps after it was taken do not reach it, though it is uploaded later."""
    trained = learner()
    step(trained)
    files = files_of(trained)
    before = {name: b"".join(content) for name, content in files.items()}
    step(trained, 1)

    assert {name: b"".join(content) for name, content in files.items()} == before


def test_a_state_that_is_not_finite_is_never_saved(learner):
    """The error names the tensor."""
    trained = learner()
    with torch.no_grad():
        trained.model.wpe.weight[3, 5] = math.inf

    with pytest.raises(DivergedError, match=r"step 2: wpe\.weight not finite"):
        files_of(trained)


@pytest.fixture
def changed(learner, tmp_path):
    """Restores a checkpoint in which tensors of one file were changed; the reason it is rejected for."""
    trained = learner()
    step(trained)
    write(tmp_path, files_of(trained))

    def restored(name, change):
        stored = load_file(tmp_path / name)
        change(stored)
        write(tmp_path, {name: to_safetensors(stored)})
        with pytest.raises(Rejected) as rejected:
            restore(tmp_path, RECORD, learner(restoring=True))
        return rejected.value.reason

    return restored


WRONG = {
    "missing": lambda stored, name: stored.pop(name),
    "shape": lambda stored, name: stored.update({name: stored[name][:-1]}),
    "dtype": lambda stored, name: stored.update({name: stored[name].bfloat16()}),
    "unknown": lambda stored, name: stored.update({f"h.7.{name}": stored[name]}),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_model_that_does_not_fit_is_rejected(changed, wrong):
    """A parameter too few, too many, of another shape or type: the checkpoint is passed over."""
    assert changed(MODEL, lambda stored: wrong(stored, "wpe.weight")) == "shape"


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_optimizer_that_does_not_fit_is_rejected(changed, wrong):
    """A moment too few, too many, of another shape or type: the checkpoint is passed over."""
    assert changed(OPTIMIZER, lambda stored: wrong(stored, "wpe.weight.exp_avg")) == "shape"


def test_an_optimizer_that_lacks_a_parameter_is_rejected(changed):
    """A parameter without any state among others that have it would start over unnoticed."""

    def without(stored):
        for entry in ("exp_avg", "exp_avg_sq", "step"):
            del stored[f"wpe.weight.{entry}"]

    assert changed(OPTIMIZER, without) == "shape"


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE])
def test_a_file_of_another_format_is_rejected(learner, tmp_path, name):
    """Bytes that are none of ours are told from tensors that do not fit."""
    trained = learner()
    write(tmp_path, {**files_of(trained), name: [b"no such format"]})
    with pytest.raises(Rejected) as rejected:
        restore(tmp_path, RECORD, learner(restoring=True))

    assert rejected.value.reason == "format"


def test_a_rejected_checkpoint_leaves_nothing_behind(learner, tmp_path):
    """The one that is restored after it, from before the first step, has no moments of the other."""
    first, later, restored = learner(), learner(), learner(restoring=True)
    step(later)
    write(tmp_path, {**files_of(later), STATE: [b"damaged"]})
    with pytest.raises(Rejected):
        restore(tmp_path, RECORD, restored)
    write(tmp_path, files_of(first))
    restore(tmp_path, RECORD, restored)

    assert unequal(tensors(restored), tensors(first)) == []


@pytest.mark.parametrize(("decay", "spared"), [("matrices", 1), ("all", 0)])
def test_weight_decay_spares_norms_and_biases_unless_told(config, decay, spared):
    """With "matrices" everything of one dimension is left alone; with "all" nothing is."""
    model = GPT(config().model, V)
    groups = build_optimizer(model, OptimizerConfig(decay=decay, weight_decay=0.1)).param_groups
    left_alone = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]

    assert len(left_alone) == spared * sum(p.dim() < 2 for p in model.parameters())
