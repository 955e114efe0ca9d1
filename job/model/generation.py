"""Decoding: the tokens that follow prompts, one after the other or several prompts side by side."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from job.model.rows import Rows, check_prompt
from job.model.sampling import Sampling, require

FinishReason = Literal["length", "stop"]
GREEDY = Sampling()


class News(NamedTuple):
    """What a step brought to one prompt.

    Args:
        prompt: Its number, in the order of `add`.
        token: The next token; None when there is none.
        finish_reason: Why that was the last: `length` (as many as asked for) or `stop` (the stop token, which is not
            part of the continuation).
    """

    prompt: int
    token: int | None
    finish_reason: FinishReason | None


@dataclass(eq=False, slots=True)
class _Open:
    """A prompt that is being continued."""

    number: int
    generator: torch.Generator | None
    sequence: list[int]
    new: int = 0


@dataclass(slots=True)
class Continuations:
    """Prompts that are continued side by side, at most `capacity` at a time; the others wait.

    A prompt's tokens do not depend on which others there are, but for rounding.

    Args:
        rows: None in use, and room for `capacity`.
        stop_token: Ends a continuation and is not part of it; without one, nothing but the count does.

    Raises:
        ConfigError: An argument has no meaning.
    """

    rows: Rows
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_token: int | None = None
    capacity: int = 1
    _added: int = 0
    _waiting: deque[_Open] = field(default_factory=deque)
    _open: list[_Open] = field(default_factory=list)  # one for each of the rows

    def __post_init__(self) -> None:
        require(
            (self.max_new_tokens >= 0, f"max_new_tokens={self.max_new_tokens} must be at least 0"),
            (self.capacity >= 1, f"capacity={self.capacity} must be at least 1"),
        )

    def __bool__(self) -> bool:
        """Whether a prompt is open or waits."""
        return bool(self._open or self._waiting)

    def add(self, prompt: Sequence[int], generator: torch.Generator | None = None) -> int:
        """Take a prompt in; its number.

        Args:
            generator: Source of its draws; torch's own when there is none.

        Raises:
            ConfigError: The prompt is empty, or holds what is no token.
        """
        check_prompt(prompt, self.rows.vocab_size)
        self._waiting.append(_Open(self._added, generator, list(prompt)))
        self._added += 1
        return self._added - 1

    def step(self) -> list[News]:
        """One more token for each prompt that has a row."""
        logits = list(self.rows.extend([one.sequence[-1] for one in self._open])) if self._open else []
        unread: list[News] = []
        while self._waiting and len(self._open) < self.capacity:
            one = self._waiting.popleft()
            if self.max_new_tokens == 0:
                unread.append(News(one.number, None, "length"))
                continue
            logits.append(self.rows.add(one.sequence))
            self._open.append(one)
        news = [self._choose(one, row) for one, row in zip(self._open, logits, strict=True)]
        for item in news:
            if item.finish_reason:
                self.end(item.prompt)
        return unread + news

    def end(self, prompt: int) -> None:
        """No more of this prompt; nothing happens when it has ended."""
        for row, one in enumerate(self._open):
            if one.number == prompt:
                self.rows.remove(row)
                last = self._open.pop()
                if row < len(self._open):
                    self._open[row] = last
                return
        self._waiting = deque(one for one in self._waiting if one.number != prompt)

    def _choose(self, one: _Open, logits: Tensor) -> News:
        token = self.sampling.choose(logits, one.sequence, one.generator)
        if token == self.stop_token:
            return News(one.number, None, "stop")
        one.sequence.append(token)
        one.new += 1
        return News(one.number, token, "length" if one.new == self.max_new_tokens else None)


def generate(
    rows: Rows,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
) -> Iterator[int]:
    """The tokens that continue a prompt, each as soon as it is known.

    A prompt longer than the context keeps its end, and past the context the window slides: each token follows from
    the last `context_length` ones alone, numbered from 0.

    Raises:
        ConfigError: An argument has no meaning.
    """
    continuation = Continuations(rows, max_new_tokens, sampling, stop_token)
    continuation.add(prompt, generator)
    return _tokens(continuation)


def _tokens(continuation: Continuations) -> Iterator[int]:
    while continuation:
        yield from (one.token for one in continuation.step() if one.token is not None)
