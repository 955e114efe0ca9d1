"""The `evaluate` command: what a run's model costs on whole splits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from job.config import Config
from job.data.corpus import pull
from job.data.prepare import prepare
from job.data.token_files import require_windows
from job.errors import DataError
from job.infra.storage import open_store
from job.training.evaluation import Evaluator
from job.training.pretrained import load_for_use
from job.training.text import evaluation_set


def evaluate(
    config: Config,
    which: str,
    splits: Sequence[str],
    corpus: str | None,
    advance: Callable[[], None],
    weights: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Loss, perplexity, bits per byte and tokens of each split.

    Args:
        config: Where the run is and how to reach it.
        which: Checkpoint: best, last or a step.
        splits: Those to measure; empty: all that have a window.
        corpus: A text to measure on instead of the run's own, whole; it counts as the test split.
        advance: Called as work moves; may raise to stop.
        weights: Where weights are that are no run's; unset: the run.

    Raises:
        NotFoundError: There is no such run or checkpoint.
        DataError: A split has no window.
    """
    run = load_for_use(config, which, weights)
    data = replace(run.config.data, cache_dir=config.data.cache_dir, tokenizer_dir=config.data.tokenizer_dir)
    if corpus:
        data = replace(data, corpus=(corpus,), split=(0.0, 0.0, 1.0))
    files = prepare(pull(data, lambda uri: open_store(uri, config.storage), advance), run.tokenizer, data, advance)
    measured = replace(run.config, data=data)
    if not corpus:
        require_windows(files, data.split, run.config.model.context_length)
    sets = {
        split.name: evaluation_set(split, measured, None)
        for split in files.splits
        if split.tokens > run.config.model.context_length
    }
    if absent := [split for split in splits if split not in sets] or ([] if sets else ["test"]):
        needed = run.config.model.context_length + 1
        raise DataError(f"{', '.join(absent)}: no window of {needed} tokens (model.context_length + 1) to measure")
    evaluator = Evaluator(sets, run.numerics, run.device, advance=advance)
    return {split: evaluator.measure(run.model, split).plain() for split in splits or sets}
