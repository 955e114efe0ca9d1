"""Which text belongs to train, validation and test."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from job.data.documents import Document
from job.data.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
HASH_RANGE = 1 << 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a document that is encoded by itself, because its tokens do not depend on its neighbours.

    Args:
        split: Index into SPLITS.
        text: Never empty.
        first: Whether a document, or the part of it in this split, begins here.
        last: Whether the document ends here and another one may follow.
    """

    split: int
    text: str
    first: bool
    last: bool


def one_text(document: Document, characters: int, shares: Sequence[float], tokenizer: Tokenizer) -> Iterator[Segment]:
    """One text cut by characters, as the tutorials do: the first share of them is train, and so on, none left over."""
    pieces = _cut(document.pieces(), cut_points(characters, shares))
    for split, group in groupby(pieces, key=lambda piece: piece[0]):
        texts = safe_pieces((text for _, text in group), tokenizer)
        yield from (Segment(split, text, first=number == 0, last=False) for number, text in enumerate(texts))


def many_texts(documents: Iterable[Document], shares: Sequence[float], tokenizer: Tokenizer) -> Iterator[Segment]:
    """Every document whole in one split, chosen by its content: equal documents never meet across splits."""
    for document in documents:
        split = split_of(document, shares)
        held, first = None, True
        for text in safe_pieces(document.pieces(), tokenizer):
            if held is not None:
                yield Segment(split, held, first, last=False)
                first = False
            held = text
        if held is not None:
            yield Segment(split, held, first, last=True)


def cut_points(characters: int, shares: Sequence[float]) -> list[int]:
    """Where each split ends. Sums of shares are rounded, so that 0.7 + 0.2 is 0.9."""
    return [*(int(round(total, 9) * characters) for total in accumulate(shares[:-1])), characters]


def split_of(document: Document, shares: Sequence[float]) -> int:
    """The split of a document: its content's hash, as a number from 0 to 1, among the shares."""
    content = hashlib.sha256()
    for piece in document.pieces():
        content.update(piece.encode())
    place = int.from_bytes(content.digest()[:8], "big") / HASH_RANGE
    ends = [round(total, 9) for total in accumulate(shares)]
    return next((split for split, end in enumerate(ends) if place < end), len(shares) - 1)


def safe_pieces(pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """The same text in pieces whose tokens together are the tokens of the whole; in one when it came in one."""
    held = ""
    for piece in pieces:
        if end := tokenizer.cut(held):
            yield held[:end]
            held = held[end:]
        held += piece
    if held:
        yield held


def _cut(pieces: Iterable[str], ends: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Each piece with its split, divided where splits meet."""
    start = 0  # of the piece, in characters
    for piece in pieces:
        begin = 0
        for split, end in enumerate(ends):
            if text := piece[begin : max(begin, end - start)]:
                yield split, text
                begin += len(text)
        start += len(piece)
