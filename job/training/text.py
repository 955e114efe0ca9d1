"""What a run reads: its corpus as tokens, the order of training, and the windows it is measured on."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from job.config import Config
from job.data.cache import Advance
from job.data.corpus import Corpus, pull
from job.data.loader import Batch, BatchLoader, StepDataset
from job.data.meter import Meter, Shown
from job.data.order import DataOffset, Order
from job.data.prepare import prepare
from job.data.token_files import SplitFiles, TokenFiles, require_windows
from job.data.tokenizer import Tokenizer, build_tokenizer
from job.errors import ConfigError, DataError
from job.infra.metrics import Phase
from job.infra.place import ALONE, Place
from job.infra.storage import open_cache, open_store
from job.training.evaluation import EvaluationSet, strided_windows

log = structlog.get_logger(__name__)
_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A corpus, ready to be trained on."""

    corpus: Corpus
    tokenizer: Tokenizer
    files: TokenFiles
    order: Order

    def facts(self) -> dict[str, Any]:
        """What every record says about the data."""
        splits = {split.name: {"tokens": split.tokens, "bytes": split.bytes} for split in self.files.splits}
        sources = [{"uri": file.uri, "size": file.size, "sha256": file.sha256} for file in self.corpus.files[:1000]]
        return {
            "fingerprint": self.corpus.fingerprint,
            "files": sources,
            "splits": splits,
            "windows": self.order.windows,
        }

    def batches(
        self, config: Config, step: int, offsets: Sequence[DataOffset], pin_memory: bool, place: Place = ALONE
    ) -> Generator[Batch, None, None]:
        """Training batches from `step` on, for good; closing the iterator ends its workers."""
        batch_size, rank, world_size = config.training.batch_size, place.rank, place.world_size
        dataset = StepDataset(self.files.train.open(), self.order, batch_size, offsets, rank, world_size)
        return BatchLoader(dataset, config.data.workers, pin_memory=pin_memory).from_step(step)

    def evaluation_sets(self, config: Config, batches: int | None) -> dict[str, EvaluationSet]:
        """The fixed windows of each split that has one; `batches` of the batch size, or all."""
        sets = {}
        for split in self.files.splits:
            if split.tokens > config.model.context_length:
                count = None if batches is None else batches * config.training.batch_size
                sets[split.name] = evaluation_set(split, config, config.model.context_length, count)
        return sets

    def prompt(self, config: Config) -> list[int]:
        """Tokens from which samples go on."""
        if config.training.sample_prompt:
            try:
                return [int(token) for token in self.tokenizer.encode(config.training.sample_prompt)]
            except DataError as error:
                log.warning("samples go on from the validation split instead of sample_prompt", reason=str(error))
        count = min(_PROMPT_TOKENS, config.model.context_length)
        return [int(token) for token in self.files.validation.open().window(0, count)]


def evaluation_set(split: SplitFiles, config: Config, window: int, count: int | None) -> EvaluationSet:
    """The first `count` windows of `window` tokens in a split's own seeded order; unset: every window of it once."""
    T = window
    kind = "windows" if count is None else config.data.order
    order = Order(kind, split.tokens, T, T, config.seed, "evaluation")
    count = order.windows if count is None else count
    if kind == "windows":
        count = min(count, order.windows)  # no window is measured twice
    starts = order.starts(np.arange(count, dtype=np.int64))
    return EvaluationSet(split.open(), starts, split.bytes / split.tokens, T)


def strided_set(split: SplitFiles, window: int, stride: int, count: int | None) -> EvaluationSet:
    """The first `count` windows of a split, or all, each token scored once with much before it.

    Raises:
        ConfigError: The stride is not from 1 to the window.
    """
    if not 1 <= stride <= window:
        raise ConfigError(f"--stride {stride} must be from 1 to the window of {window} tokens")
    starts, scored = strided_windows(split.tokens, window, stride)
    read = min(window, split.tokens - 1)
    return EvaluationSet(split.open(), starts[:count], split.bytes / split.tokens, read, scored[:count])


def read_text(
    config: Config,
    phase: Callable[[Phase], None],
    advance: Advance,
    tokenizer: Tokenizer | None = None,
    shown: Shown | None = None,
) -> Text:
    """Pull and tokenize the corpus, or find that done; says what it holds. Unset, the settings say which tokenizer.

    Args:
        shown: Where a person sees how much is tokenized; what is pulled, `advance` is told.

    Raises:
        NotFoundError, DataError, AccessError, StorageError: The corpus cannot be had, or is not what it should be.
    """
    phase("pulling")
    corpus = pull(config.data, lambda uri: open_store(uri, config.storage), advance)
    phase("tokenizing")
    tokenizer = tokenizer or build_tokenizer(config.data, corpus, advance)
    files = prepare(corpus, tokenizer, config.data, advance, Meter(shown), open_cache(config))
    require_windows(files, config.data.split, config.model.context_length)
    order = Order(config.data.order, files.train.tokens, config.model.context_length, config.window_stride, config.seed)
    log.info(
        "corpus ready",
        files=len(corpus.files),
        characters=sum(split.characters for split in files.splits),
        vocabulary=tokenizer.vocab_size,
        tokens={split.name: split.tokens for split in files.splits},
        train_windows=order.windows,
        train_tokens_in_no_window=order.dropped_tail,
        steps_per_epoch=round(order.windows / config.training.batch_size, 2),
    )
    return Text(corpus, tokenizer, files, order)
