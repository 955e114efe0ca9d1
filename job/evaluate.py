"""The `evaluate` command: what a run's model costs on whole splits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from job.config import Config
from job.data.cache import Advance
from job.data.corpus import pull
from job.data.prepare import prepare
from job.data.splits import SPLITS
from job.errors import ConfigError, DataError
from job.infra.storage import open_store
from job.training.evaluation import Evaluator
from job.training.pretrained import load_for_use
from job.training.text import evaluation_set, strided_set


def evaluate(
    config: Config,
    which: str,
    advance: Advance,
    *,
    splits: Sequence[str] = (),
    corpus: str | None = None,
    weights: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    batches: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Loss, perplexity, bits per byte and tokens of each split.

    Args:
        config: Where the run is and how to reach it.
        which: Checkpoint: best, last or a step.
        splits: Those to measure; empty: all that have a share of the text.
        advance: Called as work moves; may raise to stop.
        weights: Where weights are that are no run's; unset: the run.
        corpus: A text to measure on instead of the run's own, whole; it counts as the test split.
        window: Tokens that the model reads at once; unset: its context.
        stride: Tokens from one window to the next, each token scored once with what is before it in its window;
            unset: windows beside each other, as in training, and an incomplete last one left out.
        batches: Windows to measure, in batches of the run's size: the first of the text with a stride, else those on
            which training measures; unset: all.

    Raises:
        NotFoundError: There is no such run or checkpoint.
        ConfigError: The window is longer than the context, or the stride than the window.
        DataError: A split that is asked for, or has a share of the text, has no window.
    """
    run = load_for_use(config, which, weights)
    longest = run.config.model.context_length
    if (T := window or longest) > longest:
        raise ConfigError(f"--window {T} must be at most model.context_length={longest}")
    data = replace(run.config.data, cache_dir=config.data.cache_dir, tokenizer_dir=config.data.tokenizer_dir)
    if corpus:
        data = replace(data, corpus=(corpus,), split=(0.0, 0.0, 1.0))
    files = prepare(pull(data, lambda uri: open_store(uri, config.storage), advance), run.tokenizer, data, advance)
    measured = replace(run.config, data=data)
    count = None if batches is None else batches * run.config.training.batch_size
    needed = T + 1 if stride is None else 2
    sets = {
        split.name: evaluation_set(split, measured, T, count)
        if stride is None
        else strided_set(split, T, stride, count)
        for split in files.splits
        if split.tokens >= needed
    }
    named = splits or [split for split, share in zip(SPLITS, data.split, strict=False) if share > 0]
    if short := [split for split in files.splits if split.name in named and split.name not in sets]:
        lacking = ", ".join(f"{split.name} has {split.tokens} tokens" for split in short)
        advice = "" if stride else "; a shorter --window, or --stride, asks for fewer"
        raise DataError(f"{lacking}, expected at least {needed} (a window and the token after it){advice}")
    evaluator = Evaluator(sets, run.numerics, run.device, advance=advance)
    return {split: evaluator.measure(run.model, split).plain() for split in named}
