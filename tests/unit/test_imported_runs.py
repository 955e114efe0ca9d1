"""A run that began with somebody's weights goes back to those, and to nothing else."""

from dataclasses import replace

import pytest

from job.checkpoint import history
from job.checkpoint.retention import Retention
from job.config import CheckpointConfig
from job.data.order import DataOffset
from job.errors import NotFoundError
from job.infra.device import apply_numerics, choose_numerics
from job.training.finetuning import starting_point
from job.training.learner import fresh_model
from job.training.loading import LoadedRun
from job.training.rollback import roll_back
from job.training.state import TrainingState
from tests.chaos.harness import tiny, write_corpus
from tests.chaos.small_run import SMALL, TOKENIZER, digest, new_learner, update
from tests.memory_store import MemoryObjectStore
from tests.unit.checkpoint_support import checkpoint_at, claimed, standing

ORIGIN = {"uri": "gpt2:124M", "model_sha256": "0" * 64}
TO_THE_START = DataOffset(step=0, samples=4)


@pytest.fixture
def config(tmp_path):
    return tiny(f"{tmp_path}/run", write_corpus(tmp_path), *SMALL).config


@pytest.fixture
def imported(config):
    """A run that began with weights of another seed, as its owner has it; and a learner that has them."""
    numerics = choose_numerics(config.runtime, None)
    weights = fresh_model(replace(config, seed=99), TOKENIZER.vocab_size)
    checkpoints = claimed(MemoryObjectStore())
    loaded = LoadedRun(None, config, weights, TOKENIZER, numerics, apply_numerics(numerics))
    checkpoints.save(starting_point(loaded, ORIGIN))
    learner = new_learner(config)
    learner.model.load_state_dict(weights.state_dict())
    return checkpoints, learner


def train(checkpoints, *steps):
    """Save checkpoints of a training, with retention after each."""
    retention = Retention(checkpoints, CheckpointConfig(keep_best=False))
    for step in steps:
        made = checkpoint_at(step)
        checkpoints.save(replace(made, facts={**made.facts, "imported": ORIGIN, "numerics": {}}))
        retention.run()


def test_the_imported_checkpoint_stays(imported):
    """Retention keeps what no seed gives again beside the newest two."""
    checkpoints, _ = imported
    train(checkpoints, 5, 10, 15, 20)

    assert standing(checkpoints.objects) == [0, 15, 20]


def test_going_back_to_the_start_is_going_back_to_the_weights(imported, config):
    """With every checkpoint in between pruned, a rollback ends at the imported weights, to the bit."""
    checkpoints, learner = imported
    weights = digest(learner)
    train(checkpoints, 5, 10, 15)
    update(learner, 1)
    found = roll_back(checkpoints, learner, TrainingState(step=15), TO_THE_START, config)

    assert (found.record.step, found.state.step) == (0, 0)
    assert digest(learner) == weights


def test_without_the_imported_checkpoint_there_is_no_way_back(imported, config):
    """Where it is gone all the same, the run ends and says so: the seed is another model."""
    checkpoints, learner = imported
    train(checkpoints, 5, 10)
    checkpoints.prune(history.checkpoints(checkpoints.records)[:1])
    before = digest(learner)
    with pytest.raises(NotFoundError, match="began with gpt2:124M, which no seed gives again"):
        roll_back(checkpoints, learner, TrainingState(step=10), TO_THE_START, config)

    assert digest(learner) == before
