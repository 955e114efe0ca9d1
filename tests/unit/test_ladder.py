"""Baby GPT's road: what each rung's model is made of, and what the page says of it."""

import re
from dataclasses import replace

import pytest
import torch

from job.config_file import load_config
from job.model.gpt import GPT
from job.model.ladder import NAMES, RUNGS, build_rung
from job.report.ladder_page import write_page
from job.report.ladder_plot import plot_ladder
from job.report.ladder_table import Row, Summary, compared

SHAPE = load_config("baby-cpu").config.model
SYMBOLS = 65  # of tiny Shakespeare
PARAMETERS = {  # counted by hand from the layers' sizes
    "bigram": 65 * 16 + 16 * 65 + 65,
    "positions": 2145 + 8 * 16,
    "one head": 2273 + 3 * 16 * 16,
    "scaled": 3041,
    "several heads": 2273 + 3 * 16 * 2 * 4 + 2 * 4 * 16 + 16,
    "feed-forward": 2801 + 16 * 64 + 64 + 64 * 16 + 16,
    "stacked": 2273 + 2 * (3 * 16 * 16 + 16 * 16 + 16 + 2128),
    "residuals": 8609,
    "layer norm": 8609 + 2 * 2 * 2 * 16,
    "dropout": 8737,  # Baby GPT's
    "scaled up": 8737,  # of the same shape here
}


def built(name, shape=SHAPE):
    torch.manual_seed(1)
    return build_rung(RUNGS[NAMES.index(name)], shape, SYMBOLS).eval()


def influence(name):
    """(T, T): how much the logits of each position change when the token at another does."""
    model = built(name)
    tokens = torch.arange(8)[None]
    changed = tokens.repeat(8, 1)
    changed[range(8), range(8)] += 20
    with torch.no_grad():
        return (model(changed) - model(tokens)).abs().amax(-1).T


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    """Each rung has the parameters that its layers need, none left over from later ones; all of them are trained."""
    model = built(name)
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()

    assert model.parameter_count == PARAMETERS[name]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_who_sees_whom(name):
    """Before attention a position sees itself alone; from the first head on, all before it and none after it."""
    seen = influence(name) > 0
    expected = torch.eye(8, dtype=bool) if name in ("bigram", "positions") else torch.ones(8, 8).tril().bool()

    assert torch.equal(seen, expected)


def test_positions_tell_places_apart():
    """A bigram gives a token the same logits wherever it stands; with positions it does not."""
    same = torch.zeros(1, 8, dtype=torch.int64)

    assert built("bigram")(same)[0].std(0).max() == 0
    assert built("positions")(same)[0].std(0).max() > 0.01


def test_the_scale_of_the_first_head():
    """The rung before has the same attention, but for products that are not divided by the root of the width."""
    plain, scaled = built("one head"), built("scaled")

    assert scaled.h[0].attn.scale == pytest.approx(1 / 16**0.5)
    assert plain.h[0].attn.scale == 1
    scaled.h[0].attn.scale = 1.0
    tokens = torch.arange(8)[None]
    assert torch.equal(plain(tokens), scaled(tokens))


def test_without_a_stream_a_block_replaces_what_it_reads():
    """Attention that gives nothing leaves nothing of its input; with residuals all of it stays."""
    tokens = torch.arange(8)[None]
    for name, stays in (("stacked", False), ("residuals", True)):
        model = built(name)
        with torch.no_grad():
            for block in model.h:
                block.attn.c_proj.weight.zero_()
                block.attn.c_proj.bias.zero_()
            found = model(tokens)[0]

        assert (found.std(0).max() > 0) == stays


@pytest.mark.parametrize("name", ["residuals", "layer norm", "dropout"])
def test_what_is_left_out_in_training(name):
    """Only from the rung with dropout on do two passes of a model in training differ."""
    model, tokens = built(name).train(), torch.arange(8)[None]

    assert torch.equal(model(tokens), model(tokens)) == (name != "dropout")


@pytest.mark.parametrize("preset", ["baby-cpu", "quickstart"])
def test_the_road_ends_at_the_gpt(preset):
    """With all of its parts a rung is the GPT of the config, number for number."""
    shape = replace(load_config(preset).config.model, n_layer=2)
    torch.manual_seed(1)
    whole = GPT(shape, SYMBOLS).eval()
    tokens = torch.arange(8)[None]

    assert torch.equal(built("dropout", shape)(tokens), whole(tokens))


def row(name, *losses):
    return Row(
        name=name,
        new="<b>new</b>",
        purpose="what for",
        parameters=1234,
        steps=10,
        device="cpu",
        train_losses=losses,
        val_losses=losses,
        seconds=(1.0,) * len(losses),
        sample="<script>alert(1)</script>",
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((2.5, 2.6), (2.0, 2.1), "lower by 0.500"),
        ((2.0, 2.1), (2.5, 2.6), "higher by 0.500"),
        ((2.0, 2.1), (2.05, 2.15), "within spread"),
        ((2.0,), (float("nan"),), "diverged"),
        ((2.0,), (float("inf"),), "diverged"),
    ],
)
def test_what_happened(before, after, said):
    """A rung is said to change the loss only when its seeds do not overlap with those of the rung before."""
    assert compared(row("a", *before), row("b", *after)) == said


ABOUT = {"corpus": ["<i>.txt"], "vocabulary": 3, "tokens": {"train": 9}, "seeds": [1, 2]}


def test_the_page_holds_what_models_and_files_say():
    """Names and samples are text on the page, and nothing is loaded from elsewhere."""
    summary = Summary(rows=[row("bigram", 2.5), row("scaled up", 2.0)], about=ABOUT)
    page = write_page(summary, plot_ladder(summary)).decode()

    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;i&gt;.txt" in page
    assert "lower by 0.500" in page
    assert not re.findall(r"(?:src|href)=\"[^#]", page)


@pytest.mark.parametrize("losses", [(2.0,), (2.0, float("nan")), (float("inf"),)])
def test_every_table_can_be_drawn(losses):
    """One seed, a seed that diverged, and none but those: a picture all the same."""
    summary = Summary(rows=[row("bigram", 2.5, 2.6), row("scaled up", *losses)], about=ABOUT)

    assert plot_ladder(summary).png.startswith(b"\x89PNG")
