"""Promise 1 with everything that makes steps fast: killed and continued = never stopped, bit for bit."""

import pytest

from job.model.projection import has_bf16_products
from job.training.numerics import best_on_cpu
from tests.chaos.harness import Plan, run, tiny, write_corpus
from tests.chaos.outcome import outcome

SETTINGS = {
    "muon": ("optimizer.name=muon",),
    "bf16, own masks, attention in blocks": (
        "runtime.precision=bf16",
        "model.n_embd=64",
        "model.n_head=4",
        "model.context_length=160",
        "training.max_steps=20",
    ),
    "as auto has it from 128 channels on": ("model.n_embd=128", "model.n_head=4", "training.max_steps=20"),
}


@pytest.fixture
def train(tmp_path):
    """Trains the run of a name, stopped or killed as these plans say; its outcome."""
    corpus = write_corpus(tmp_path)

    def outcome_of(name, settings, plans, *caches):
        for number, plan in enumerate(plans):
            own = [f"data.cache_dir={tmp_path / caches[number]}"] if caches else []
            code = run(tiny(f"{tmp_path}/{name}", corpus, *settings, *own), plan)
            assert code == (75 if plan.stop_at_step else -9 if plan.kill_at else 0)
        return outcome(f"{tmp_path}/{name}", tmp_path / f"{name}-files")

    return outcome_of


CUT = Plan(stop_at_step=7), Plan(kill_at=("batch", 6)), Plan()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stop_and_a_kill(settings, train):
    """Stopped at one step and killed at a later one: equal to the run that nothing disturbed."""
    assert train("cut", settings, CUT) == train("whole", settings, [Plan()])


def without_replays():
    """In the child: make every pass by modules and autograd."""
    from job.training import learner

    learner.may_replay = lambda *_: False


@pytest.mark.parametrize("replays", [(True, False), (False, True)])
def test_passes_replayed_or_not(replays, tmp_path):
    """Whether passes are replayed before a kill or after it makes no difference to a bit."""
    corpus = write_corpus(tmp_path)
    settings = ("training.batch_size=5", "model.attention_dropout=0.1", "training.max_steps=20")  # passes of 2, 2 and 1
    codes = [
        run(tiny(f"{tmp_path}/cut", corpus, *settings), plan, prepare=None if replayed else without_replays)
        for plan, replayed in zip((Plan(kill_at=("batch", 13)), Plan()), replays, strict=True)
    ]
    run(tiny(f"{tmp_path}/whole", corpus, *settings))

    assert codes == [-9, 0]
    assert outcome(f"{tmp_path}/cut", tmp_path / "a") == outcome(f"{tmp_path}/whole", tmp_path / "b")


@pytest.mark.skipif(not has_bf16_products(), reason="this processor does not multiply in bf16")
def test_auto_means_bf16_here(tmp_path):
    """The widest of the runs above is one in bf16, with dropout."""
    config = tiny("run", write_corpus(tmp_path), *SETTINGS["as auto has it from 128 channels on"]).config

    assert (best_on_cpu(config).precision, config.runtime.precision, config.model.dropout) == ("bf16", "auto", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("runtime.precision=bf16", "model.n_embd=128"), ("optimizer.name=muon",)])
def test_compiled_with_a_warm_cache_and_with_a_cold_one(settings, train):
    """What an attempt finds compiled, and what it has to compile itself, makes no difference to a bit."""
    settings = ("runtime.compile=on", "training.max_steps=20", *settings)
    whole = train("whole", settings, [Plan()], "first")

    assert train("cut", settings, CUT, "first", "first", "second") == whole
