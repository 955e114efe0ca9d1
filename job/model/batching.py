"""Continuous batching: prompts that join and leave between steps, each continued in its own way and to its own end."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from job.model.decoder import Decoder
from job.model.generation import GREEDY, FinishReason
from job.model.sampling import Sampling

CHUNK = 64  # tokens of prompts that are read between two steps


class Scored(NamedTuple):
    """A token and what the model thought of it.

    Args:
        logprob: In nats, before any sampling rule; None of a text's first token, which follows nothing.
        best: The likeliest tokens in its place, best first.
    """

    token: int
    logprob: float | None
    best: Sequence[tuple[int, float]] = ()


@dataclass(eq=False, slots=True)
class Prompt:
    """Tokens to continue, once or several times: what was read for one continuation serves the others.

    Args:
        tokens: At least one, each one of the vocabulary's.
        scores: How many of the likeliest tokens to score beside each of its own; None scores none.
    """

    tokens: Sequence[int]
    scores: int | None = None
    scored: list[Scored] = field(default_factory=list)
    logits: Tensor | None = None  # (V,) of the token after the last, once it is read


@dataclass(eq=False, kw_only=True, slots=True)
class Continuation:
    """One continuation of a prompt.

    Args:
        max_new_tokens: With the prompt at most the context.
        generator: Source of its draws; torch's own when there is none.
        stop_token: Ends it and is not part of it.
        scores: How many of the likeliest tokens to score beside each that is chosen; None scores none.
    """

    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling = GREEDY
    generator: torch.Generator | None = None
    stop_token: int | None = None
    scores: int | None = None
    tokens: list[int] = field(default_factory=list)


class Update(NamedTuple):
    """What a step brought to one continuation: a token, its end, or both."""

    who: Continuation
    token: Scored | None
    finish_reason: FinishReason | None


class Batch:
    """Continuations that share a decoder, each in a row of its cache.

    What becomes of one depends on its own prompt and settings alone, but for the rounding of products of more or fewer
    rows; `whole` removes that too. Prompts are always read in the same pieces, the ones that wait in turns, and
    between two pieces every other continuation gets its next token.

    Args:
        rows: Most continuations at a time.
        vocab_size: Tokens that may be chosen: the first ones, where the model knows more than its tokenizer.
        whole: Compute with all rows and the whole context at every step: slower.
    """

    def __init__(
        self, decoder: Decoder, rows: int, vocab_size: int | None = None, whole: bool = False, chunk: int = CHUNK
    ) -> None:
        self.rows, self.context_length = rows, decoder.context_length
        self._decoder, self._cache = decoder, decoder.new_cache(rows)
        self._vocab_size, self._whole, self._chunk = vocab_size or decoder.vocab_size, whole, chunk
        self._open: list[Continuation] = []  # one for each of the cache's rows
        self._reading: deque[Continuation] = deque()  # whose turn is next
        self._following: dict[Continuation, Continuation] = {}  # waits for the other one's reading

    def __len__(self) -> int:
        """Continuations that have a row."""
        return len(self._open)

    @property
    def bytes(self) -> int:
        """Memory of the cache."""
        return self._cache.bytes

    @property
    def reading(self) -> int:
        """Continuations whose prompt is not read yet."""
        return len(self._reading) + len(self._following)

    def join(self, one: Continuation) -> None:
        """Give a continuation a row; IndexError when all are in use.

        Raises:
            ValueError: Prompt and new tokens do not fit the context.
        """
        asked = len(one.prompt.tokens) + one.max_new_tokens
        if not one.prompt.tokens or asked > self.context_length:
            raise ValueError(f"{asked} tokens with a prompt of {len(one.prompt.tokens)}, context {self.context_length}")
        self._cache.open()
        self._open.append(one)
        self._begin(one)

    def leave(self, one: Continuation) -> None:
        """Free a continuation's row; nothing happens when it has none."""
        if one not in self._open:
            return
        row = self._open.index(one)
        self._cache.close(row)
        last = self._open.pop()
        if row < len(self._open):
            self._open[row] = last
        self._following.pop(one, None)
        if one in self._reading:
            self._reading.remove(one)
        followers = [other for other, leader in self._following.items() if leader is one]
        for other in followers:
            del self._following[other]
        for other in followers:
            self._begin(other)

    def step(self) -> list[Update]:
        """One more token for each continuation whose prompt is read, and the next piece of those that are not."""
        updates = self._extend() + self._read()
        for update in updates:
            if update.finish_reason:
                self.leave(update.who)
        return updates

    def _begin(self, one: Continuation) -> None:
        """Read the prompt, or let another one do it that has the same."""
        others = [other for other in self._open if other.prompt is one.prompt and other is not one]
        leader = next((other for other in others if other in self._reading or other.tokens), None)
        if leader is None:
            self._reading.append(one)
        else:
            self._following[one] = leader

    def _extend(self) -> list[Update]:
        last = [one.tokens[-1] if one.tokens else None for one in self._open]
        if all(token is None for token in last):
            return []
        logits = self._decoder.step(self._cache, last, self._whole)[:, : self._vocab_size]
        going = [(one, row) for one, row, token in zip(self._open, logits, last, strict=True) if token is not None]
        return [self._choose(one, row) for one, row in going]

    def _read(self) -> list[Update]:
        """Up to `chunk` tokens of prompts; what has been read for another continuation is copied."""
        updates = self._take_over()
        left = self._chunk
        while self._reading and left >= len(piece := self._piece(self._reading[0])):
            left -= len(piece)
            one = self._reading.popleft()
            logits = self._read_piece(one, piece)
            if logits is None:
                self._reading.append(one)
            else:
                updates += [self._choose(one, logits), *self._take_over()]
        return updates

    def _piece(self, one: Continuation) -> Sequence[int]:
        start = self._cache.lengths[self._open.index(one)]
        return one.prompt.tokens[start : start + self._chunk]

    @torch.inference_mode()
    def _read_piece(self, one: Continuation, piece: Sequence[int]) -> Tensor | None:
        """Read on -> logits (V,) of the token after the prompt, once all of it is read."""
        row, prompt = self._open.index(one), one.prompt
        hidden = self._decoder.hidden(self._cache, row, piece)
        read = self._cache.lengths[row]
        if prompt.scores is None:
            hidden = hidden[-1:]
            if read < len(prompt.tokens):
                return None
        logits = self._decoder.logits(hidden)[:, : self._vocab_size]
        if prompt.scores is not None:
            if read == len(piece):
                prompt.scored = [Scored(piece[0], None)]
            followed = prompt.tokens[read - len(piece) + 1 : read + 1]  # of the last piece one fewer
            prompt.scored += _scored(logits[: len(followed)], followed, prompt.scores)
        if read < len(prompt.tokens):
            return None
        prompt.logits = logits[-1].clone()
        return prompt.logits

    def _take_over(self) -> list[Update]:
        """First tokens of those whose prompt another continuation has read."""
        updates = []
        for one, leader in list(self._following.items()):
            if leader not in self._reading and one.prompt.logits is not None:
                del self._following[one]
                self._cache.copy(self._open.index(leader), self._open.index(one), len(one.prompt.tokens))
                updates.append(self._choose(one, one.prompt.logits))
        return updates

    @torch.inference_mode()
    def _choose(self, one: Continuation, logits: Tensor) -> Update:
        if one.max_new_tokens == 0:
            return Update(one, None, "length")
        token = one.sampling.choose(logits, [*one.prompt.tokens, *one.tokens], one.generator)
        if token == one.stop_token:
            return Update(one, None, "stop")
        one.tokens.append(token)
        scored = Scored(token, None) if one.scores is None else _scored(logits[None], [token], one.scores)[0]
        return Update(one, scored, "length" if len(one.tokens) == one.max_new_tokens else None)


def _scored(logits: Tensor, tokens: Sequence[int], count: int) -> list[Scored]:
    """Logits (n, V) and the n tokens in their places -> what the model thought of each."""
    if not tokens:
        return []
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor([tokens], device=logits.device).T)[:, 0].tolist()
    best, numbers = logprobs.topk(min(count, logits.shape[-1]), dim=-1)
    pairs = [list(zip(*row, strict=True)) for row in zip(numbers.tolist(), best.tolist(), strict=True)]
    return [Scored(*facts) for facts in zip(tokens, own, pairs, strict=True)]
