"""Tokens to text while they arrive: what is certain is given at once, the rest waits."""

from collections.abc import Sequence

from job.data.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"


class TextStream:
    """The text of one continuation, piece by piece; it ends before the first stop string.

    The first is the one that is whole first, wherever the borders between tokens are: of "b" and "aba" in "aba" it
    is "b". Of two that end together it is the longer one.

    A character that is not whole yet waits for its other bytes, and what may be the start of a stop string for the
    rest of it.

    Args:
        stops: Texts that end the continuation and are not part of it.
        stopped: Whether one of them came.
        text: What was given so far.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stop for stop in stops if stop)
        self._pending: list[int] = []  # tokens whose characters are not all whole
        self._taken = 0  # characters of theirs that are
        self._held = ""  # whole characters that may begin a stop string
        self.stopped = False
        self.text = ""

    @property
    def length(self) -> int:
        """Characters that are whole so far, given or held: where the next token's text begins."""
        return len(self.text) + len(self._held)

    def add(self, token: int) -> str:
        """What is certain after one more token; nothing once it has stopped."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        whole = text[:-1] if text.endswith(_UNKNOWN) else text
        piece, self._taken = whole[self._taken :], len(whole)
        if len(whole) == len(text):
            self._pending, self._taken = [], 0
        return self._give(piece, last=False)

    def end(self) -> str:
        """The rest: no more tokens will come."""
        rest = self._tokenizer.decode(self._pending)[self._taken :]
        self._pending, self._taken = [], 0
        return self._give(rest, last=True)

    def _give(self, piece: str, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + piece
        found = [(place + len(stop), place) for stop in self._stops if (place := held.find(stop)) >= 0]
        self.stopped = bool(found)
        keep = min(found)[1] if found else len(held) - (0 if last else self._undecided(held))
        given, self._held = held[:keep], held[keep:]
        self.text += given
        return given

    def _undecided(self, text: str) -> int:
        """Characters at the end of `text` that a stop string may begin with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
