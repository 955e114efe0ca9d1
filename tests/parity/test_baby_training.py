"""Baby GPT's CPU column, trained by the job and by a plain loop: the same validation loss, but for the seeds.

Both train on characters of tiny Shakespeare, and all models are measured over the same 1,000 batches without dropout.
"""

import statistics

import pytest
import torch
from torch.nn import functional as F

from job.config_file import load_config
from job.training.loading import load_run
from tests.parity.plain_models import PlainBaby
from tests.parity.test_verdict_training import of_kind, train
from tests.unit.data_support import published

SEEDS = (1, 2, 3)
STEPS, ROWS, CONTEXT = 10_000, 16, 8
MEASURED = 1000  # batches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small a model gains nothing from two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def windows():
    """Every block of the training and of the validation text, (N, 9) each: characters numbered as they sort."""
    text = published("tinyshakespeare.txt").read_text(encoding="utf-8")
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[character] for character in text])
    cut = int(0.9 * len(tokens))
    return tokens[:cut].unfold(0, CONTEXT + 1, 1), tokens[cut:].unfold(0, CONTEXT + 1, 1)


def mean_loss(model, blocks):
    """Blocks (n, 9) -> nats per token."""
    return F.cross_entropy(model(blocks[:, :-1]).flatten(0, 1), blocks[:, 1:].flatten())


def measured(model, windows):
    """Validation loss over the same batches for every model."""
    starts = torch.randint(len(windows[1]), (MEASURED * ROWS,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(mean_loss(model.eval(), windows[1][starts]))


def trained_plainly(seed, windows):
    torch.manual_seed(seed)
    model = PlainBaby(2, 2, 16, CONTEXT, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        mean_loss(model, windows[0][torch.randint(len(windows[0]), (ROWS,))]).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def plain_losses(windows):
    """Of the plain loop, one a seed."""
    losses = [measured(trained_plainly(seed, windows), windows) for seed in SEEDS]
    print("plain", *(f"{loss:.4f}" for loss in losses))
    return losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder, summary and events of the job, one a seed."""
    corpus = published("tinyshakespeare.txt").resolve()
    folders = [tmp_path_factory.mktemp(f"seed-{seed}") for seed in SEEDS]
    settings = (f"data.corpus={corpus}", "runtime.threads=1")
    return [
        (folder, *train(folder, "baby-cpu", *settings, f"seed={seed}"))
        for seed, folder in zip(SEEDS, folders, strict=True)
    ]


@pytest.fixture(scope="module")
def models(runs):
    configs = [load_config(overrides=[f"run_uri={folder}/run", "runtime.threads=1"]).config for folder, *_ in runs]
    return [load_run(config, "last").model for config in configs]


def test_parameters(models):
    """The model has the document's 8,737 parameters."""
    assert {model.parameter_count for model in models} == {8737}


def test_when_it_is_evaluated(runs):
    """Losses are measured before the first update and every 500 after it."""
    for _, _, events in runs:
        assert [event["step"] for event in of_kind(events, "evaluated")] == list(range(0, STEPS + 1, 500))


def test_validation_loss(models, plain_losses, windows):
    """The mean over the job's seeds lies where the plain loop's seeds lie, give or take their deviation."""
    losses = [measured(model, windows) for model in models]
    print("job", *(f"{loss:.4f}" for loss in losses))
    deviation = statistics.stdev(plain_losses)

    assert min(plain_losses) - deviation <= statistics.mean(losses) <= max(plain_losses) + deviation
