"""Sequences that a model continues side by side, with a cache or without: what decoding asks of a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from job.errors import ConfigError
from job.model.decoder import Decoder


class Rows(Protocol):
    """Sequences 0, 1, ... of tokens, and after each its next token's logits.

    Every sequence may be longer than the context: the model sees its last `context_length` tokens, numbered from 0.
    """

    context_length: int
    vocab_size: int

    def add(self, tokens: Sequence[int]) -> Tensor:
        """A new sequence after the last, of at least one token -> logits (V,)."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """One more token for each sequence -> logits (n, V)."""

    def select(self, rows: Sequence[int]) -> None:
        """Sequence i becomes what `rows[i]` was; it may be taken several times, or not at all."""

    def remove(self, row: int) -> None:
        """Drop a sequence. The last one takes its number."""


class CachedRows:
    """Rows of a static cache. A full row is read anew for each further token: learned positions do not slide.

    Args:
        capacity: Most sequences at a time.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size
        self._decoder, self._cache = decoder, decoder.new_cache(capacity)
        self._sequences: list[list[int]] = []
        self._in_common = 0  # tokens with which all rows begin

    def add(self, tokens: Sequence[int]) -> Tensor:
        """Read a prompt into a new row."""
        row = self._cache.open()
        self._sequences.append(list(tokens))
        self._in_common = 0
        return self._read(row)

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read one token into each row."""
        full = [row for row, length in enumerate(self._cache.lengths) if length == self.context_length]
        for sequence, token in zip(self._sequences, tokens, strict=True):
            sequence.append(token)
        if not full:
            return self._decoder.step(self._cache, tokens)
        all_full = len(full) == len(tokens)
        logits: list[Tensor] = [] if all_full else list(self._decoder.step(self._cache, tokens))
        for row in full:
            logits[row : row + 1] = [self._read(row)]
        return torch.stack(logits)

    def select(self, rows: Sequence[int]) -> None:
        """Copy, move and drop rows of the cache."""
        self._cache.select(rows, self._in_common)
        self._sequences = [list(self._sequences[row]) for row in rows]
        if len(set(rows)) == 1:
            self._in_common = len(self._sequences[0])

    def remove(self, row: int) -> None:
        """Free a row of the cache."""
        self._cache.close(row)
        last = self._sequences.pop()
        if row < len(self._sequences):
            self._sequences[row] = last

    def _read(self, row: int) -> Tensor:
        self._cache.lengths[row] = 0
        return self._decoder.read(self._cache, row, self._sequences[row][-self.context_length :])


class NextLogits(Protocol):
    """A model without a cache. It is shown `context_length` tokens at most; GPT is one."""

    context_length: int
    vocab_size: int

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, V) of the token after the last."""


class PlainRows:
    """Rows that are read whole for every token: slow, but of a model whose weights may be those of this moment."""

    def __init__(self, model: NextLogits, device: torch.device | None = None) -> None:
        self.context_length, self.vocab_size = model.context_length, model.vocab_size
        self._model, self._device = model, device
        self._sequences: list[list[int]] = []

    def add(self, tokens: Sequence[int]) -> Tensor:
        """Note a prompt, and read it."""
        self._sequences.append(list(tokens))
        return self._logits(self._sequences[-1:])[0]

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Note one token for each sequence, and read them all; those of one length together."""
        for sequence, token in zip(self._sequences, tokens, strict=True):
            sequence.append(token)
        if len({min(len(sequence), self.context_length) for sequence in self._sequences}) == 1:
            return self._logits(self._sequences)
        return torch.cat([self._logits([sequence]) for sequence in self._sequences])

    def select(self, rows: Sequence[int]) -> None:
        """Copy and drop sequences."""
        self._sequences = [list(self._sequences[row]) for row in rows]

    def remove(self, row: int) -> None:
        """Drop a sequence."""
        last = self._sequences.pop()
        if row < len(self._sequences):
            self._sequences[row] = last

    def _logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        windows = [sequence[-self.context_length :] for sequence in sequences]
        return self._model.next_logits(torch.tensor(windows, device=self._device))


def check_prompt(tokens: Sequence[int], vocab_size: int) -> None:
    """Pass when there is a token and each is one of the vocabulary's. Raises ConfigError."""
    if not len(tokens):
        raise ConfigError("the prompt is empty; at least one token is needed")
    strangers = [token for token in tokens if not 0 <= token < vocab_size]
    if strangers:
        raise ConfigError(f"token {strangers[0]} of the prompt is not among the {vocab_size} of the vocabulary")
