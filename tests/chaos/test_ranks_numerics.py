"""What several processes compute with: the same on all of them, near what one computes, and bit-equal after kills."""

import pytest

from job.model.projection import has_bf16_products
from tests.chaos.commands import train as train_alone
from tests.chaos.harness import Plan
from tests.chaos.several import came_to, codes, losses, train
from tests.integration.command import World

CALM = Plan()
TWO = (CALM, CALM)
WIDE = ("model.n_embd=128", "model.n_head=4")  # where auto means bf16
FEW = ("training.max_steps=4", "observe.log_every=1")
ASKED = "runtime.compile=on"
MUON = "optimizer.name=muon"
# Five rows in passes of two: a rank with three, and one with two and a pass that counts nothing.
UNEVEN = ("model.dropout=0", "training.batch_size=5", "training.max_steps=12", "observe.log_every=1")
BOUNDS = {"fp32": 1e-5, "bf16": 2e-3}  # of losses, relative: sums in another order, of numbers rounded to 8 bits


def apart(found, expected):
    """The most that two runs' losses differ, relative."""
    assert list(found) == list(expected)
    return max(abs(found[step] / expected[step] - 1) for step in expected)


def numerics(world):
    """What each attempt computed with."""
    return [event["numerics"] for event in world.history() if event["event"] == "run started"]


def multiply_in_fp32_only():
    from job.training import numerics

    numerics.has_bf16_products = lambda: False


def have_no_compiler():
    import torch._inductor.config

    torch._inductor.config.cpp.cxx = ("no-such-compiler",)
    torch._inductor.config.force_disable_caches = True


def turn_head_logits_into_gradients():
    """As at sizes that are worth it."""
    from job.model import loss

    loss._WORTH_IT = 0


@pytest.mark.skipif(not has_bf16_products(), reason="this processor does not multiply in bf16")
def test_a_machine_that_lacks_bf16(tmp_path):
    """Where one of two would take bf16 and the other cannot, both train in fp32, and one line says so."""
    world = World.create(tmp_path)
    first, second = train(world, TWO, *WIDE, *FEW, before={1: multiply_in_fp32_only})

    assert codes([first, second]) == [0, 0]
    assert numerics(world)[0]["precision"] == "fp32"
    assert len(first.events("the machines of this run differ: taken is what all of them have")) == 1


def test_a_machine_that_lacks_a_compiler_where_it_is_asked_for(tmp_path):
    """runtime.compile=on and one rank that cannot: all end with 78 and what it said, before anything is trained."""
    world = World.create(tmp_path)
    ends = train(world, TWO, *FEW, ASKED, before={1: have_no_compiler}, patience=300)

    assert codes(ends) == [78, 78]
    assert "rank 1: runtime.compile='on', but torch cannot compile here" in ends[0].reason
    assert not world.records()


def test_muon_is_not_cut_into_shards(tmp_path):
    """runtime.parallel=fsdp: both ranks end with 78 and one line that says what to take, before anything is trained."""
    world = World.create(tmp_path)
    ends = train(world, TWO, *FEW, MUON, "runtime.parallel=fsdp", patience=300)

    assert codes(ends) == [78, 78]
    assert [line["reason"] for line in ends[0].log if line["level"] == "error"] == [ends[0].reason]
    assert ends[0].reason.endswith("take runtime.parallel=ddp")
    assert not world.records()


def test_the_optimizer_is_kept_for_life(tmp_path):
    """A run that began with Muon is not continued with AdamW: 78 on all ranks, and what was saved stays."""
    world = World.create(tmp_path)
    assert codes(train(world, TWO, *FEW, MUON)) == [0, 0]
    saved = world.records()
    ends = train(world, TWO, *FEW, "training.max_steps=8", patience=300)

    assert codes(ends) == [78, 78]
    assert "optimizer.name is 'muon' in the run, 'adamw' here" in ends[0].reason
    assert world.records() == saved


def test_muon_goes_on_as_others(tmp_path):
    """Momenta stored by two, continued by one and by two again: every step once, losses as one process has them."""
    alone, mixed = World.create(tmp_path / "alone"), World.create(tmp_path / "mixed")
    assert train_alone(alone, *UNEVEN, MUON).code == 0
    ends = [
        codes(train(mixed, (CALM, Plan(stop_at_step=3)), *UNEVEN, MUON)),
        codes(train(mixed, (Plan(stop_at_step=8),), *UNEVEN, MUON)),
        codes(train(mixed, TWO, *UNEVEN, MUON)),
    ]

    assert ends == [[75, 75], [75], [0, 0]]
    assert apart(losses(mixed), losses(alone)) < 1e-3  # Muon's products are in bf16, whatever the precision


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(MUON,), WIDE, (*WIDE, "runtime.parallel=fsdp")], ids=["muon", "bf16", "fsdp"])
def test_stopped_and_killed_two_end_equal(settings, tmp_path):
    """Two ranks, one stopped at a step and one killed later: bit-equal to two that nothing disturbed."""
    whole, cut = World.create(tmp_path / "whole"), World.create(tmp_path / "cut")
    assert codes(train(whole, TWO, *settings)) == [0, 0]
    ends = [
        codes(train(cut, (CALM, Plan(stop_at_step=7)), *settings)),
        codes(train(cut, (Plan(kill_at=("batch", 6)), CALM), *settings)),
        codes(train(cut, TWO, *settings)),
    ]

    assert ends == [[75, 75], [-9, 1], [0, 0]]
    assert came_to(cut) == came_to(whole)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_one_process(tmp_path, precision, compiled):
    """DDP and FSDP2, five uneven rows in passes of two, the head's own gradients: within the bounds at every step."""
    settings = (*UNEVEN, *WIDE, f"runtime.precision={precision}", f"runtime.compile={compiled}")
    alone = World.create(tmp_path / "alone")
    assert train_alone(alone, *settings, before=turn_head_logits_into_gradients).code == 0
    expected = losses(alone)
    for spread in ("ddp", "fsdp"):
        world = World.create(tmp_path / spread)
        both = dict.fromkeys(range(2), turn_head_logits_into_gradients)
        ends = train(world, TWO, *settings, f"runtime.parallel={spread}", before=both)

        assert codes(ends) == [0, 0], ends[0].stderr
        assert numerics(world)[0]["compile"] == (compiled == "on")
        found = apart(losses(world), expected)
        print(f"{spread} {precision} compile={compiled}: at most {found:.1e} apart")
        assert found < BOUNDS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_compiled_by_two_by_one_and_by_two(spread, tmp_path):
    """Saved by two, continued by one, by two again: losses as those of one process, compiled all the way."""
    settings = (*UNEVEN, ASKED)
    alone, mixed = World.create(tmp_path / "alone"), World.create(tmp_path / "mixed")
    assert train_alone(alone, *settings).code == 0
    of_two = (*settings, f"runtime.parallel={spread}")
    ends = [
        codes(train(mixed, (CALM, Plan(stop_at_step=3)), *of_two)),
        codes(train(mixed, (Plan(stop_at_step=8),), *settings)),
        codes(train(mixed, TWO, *of_two)),
    ]

    assert ends == [[75, 75], [75], [0, 0]]
    assert apart(losses(mixed), losses(alone)) < 1e-5


@pytest.mark.slow
def test_a_machine_that_has_lost_its_compiler(tmp_path):
    """A run that began compiled, where one of two cannot: both end with 78; told to, they go on without, marked."""
    world = World.create(tmp_path)
    assert codes(train(world, (CALM, Plan(stop_at_step=7)), ASKED)) == [75, 75]
    ends = train(world, TWO, before={1: have_no_compiler}, patience=300)
    assert codes(ends) == [78, 78]
    assert "rank 1: the run was compiled so far, but torch cannot compile here" in ends[0].reason
    first, second = train(world, TWO, "runtime.compile=off", before={1: have_no_compiler})

    assert codes([first, second]) == [0, 0]
    assert [each["compile"] for each in numerics(world)] == [True, False]
    marked = first.events("numbers will differ from those of an unbroken run")
    assert [line["change"] for line in marked] == ["compile was True, is False"]
