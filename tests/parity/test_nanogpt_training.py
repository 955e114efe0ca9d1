"""nanoGPT's character model for a CPU, trained by the job: as good as its author's.

Configuration of karpathy/nanoGPT's readme ("I only have a macbook"): 4 layers, 4 heads, 128 channels, context 64,
batches of 12, 2,000 steps, no dropout; its own readme tells of a validation loss of about 1.88.
"""

import pytest

from tests.parity.test_verdict_training import of_kind, train
from tests.unit.data_support import published

NANOGPT = (
    "model.n_layer=4",
    "model.n_head=4",
    "model.n_embd=128",
    "model.context_length=64",
    "model.dropout=0",
    "model.bias=false",
    "model.qkv_bias=false",
    "data.tokenizer=char",
    "data.split=[0.9, 0.1]",
    "data.order=random",
    "optimizer.learning_rate=1e-3",
    "optimizer.min_learning_rate=1e-4",
    "optimizer.schedule=cosine",
    "optimizer.warmup_steps=100",
    "optimizer.beta1=0.9",
    "optimizer.beta2=0.99",
    "optimizer.weight_decay=0.1",
    "optimizer.decay=matrices",
    "optimizer.clip_norm=1.0",
    "training.batch_size=12",
    "training.max_steps=2000",
    "training.eval_every=250",
    "training.eval_batches=200",
    "training.sample_every=none",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_validation_loss(tmp_path):
    """Over 200 batches the last validation loss is at most 1.90 nats a character."""
    corpus = published("tinyshakespeare.txt").resolve()
    summary, events = train(tmp_path, "quickstart", f"data.corpus={corpus}", *NANOGPT)
    print(f"nanoGPT {of_kind(events, 'evaluated')[-1]['val_loss']:.4f}, {summary['seconds']:.0f} s in steps")

    assert summary["step"] == 2000
    assert of_kind(events, "evaluated")[-1]["val_loss"] <= 1.90
