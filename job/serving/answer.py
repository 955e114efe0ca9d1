"""One choice of an answer: tokens in, pieces of OpenAI's JSON out."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from job.data.streaming import TextStream
from job.data.tokenizer import Tokenizer
from job.model.batching import Continuation, Scored, Update
from job.model.generation import FinishReason


class Placed(NamedTuple):
    """A scored token and the character of the answer's text at which it begins."""

    scored: Scored
    offset: int


class Piece(NamedTuple):
    """What has been added to one choice.

    Args:
        tokens: New tokens so far, those of a stop string too.
    """

    choice: int
    text: str
    placed: Sequence[Placed]
    finish_reason: FinishReason | None
    tokens: int


class Answer:
    """One choice, made of a continuation's updates.

    Args:
        echo: The prompt's text, with which the answer begins; empty without.
    """

    def __init__(
        self, index: int, continuation: Continuation, tokenizer: Tokenizer, stops: Sequence[str], echo: str = ""
    ) -> None:
        self.index, self.continuation = index, continuation
        self._tokenizer, self._stream = tokenizer, TextStream(tokenizer, stops)
        self._echo, self._begun = echo, False
        self._waiting: deque[Placed] = deque()  # tokens whose text is not given yet

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: no more tokens are wanted."""
        return self._stream.stopped

    def take(self, update: Update) -> Piece:
        """What a step's update adds."""
        text, placed = "", []
        if not self._begun:
            self._begun = True
            text, placed = self._echo, self._echoed()
        if update.token is not None:
            self._waiting.append(Placed(update.token, len(self._echo) + self._stream.length))
            text += self._stream.add(update.token.token)
        if update.finish_reason:
            text += self._stream.end()
        finish_reason = "stop" if self.stopped else update.finish_reason
        given = len(self._echo) + len(self._stream.text)
        while self._waiting and self._waiting[0].offset < given:
            placed.append(self._waiting.popleft())
        scored = placed if self.continuation.scores is not None else []
        return Piece(self.index, text, scored, finish_reason, len(self.continuation.tokens))

    def _echoed(self) -> list[Placed]:
        """The prompt's tokens, where the answer begins with them."""
        if not self._echo:
            return []
        reader = TextStream(self._tokenizer)
        placed = []
        for scored in self.continuation.prompt.scored:
            placed.append(Placed(scored, reader.length))
            reader.add(scored.token)
        return placed


def logprobs_of(placed: Sequence[Placed], tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Scored tokens as OpenAI's `logprobs`; the chosen token is always among the top ones."""
    tops: list[Mapping[str, float] | None] = []
    for scored, _ in placed:
        if scored.logprob is None:
            tops.append(None)
            continue
        top = {token_text(token, tokenizer): logprob for token, logprob in scored.best}
        top.setdefault(token_text(scored.token, tokenizer), scored.logprob)
        tops.append(top)
    return {
        "tokens": [token_text(scored.token, tokenizer) for scored, _ in placed],
        "token_logprobs": [scored.logprob for scored, _ in placed],
        "top_logprobs": tops,
        "text_offset": [offset for _, offset in placed],
    }


def token_text(token: int, tokenizer: Tokenizer) -> str:
    r"""A token as text; one that is a part of a character as `bytes:\xe2\x80`, as OpenAI writes it."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
