"""Where text may be cut before it is encoded.

A cut at a safe place changes no token. A stretch without one may be a gigabyte of one letter, on which tiktoken's time
and memory grow faster than the text, or of spaces, on which it panics (its regex engine backtracks once for each). So a
stretch longer than STRETCH is cut every STRETCH characters, counted from where it begins: what becomes of a text does
not depend on the pieces in which it was read.
"""

import re
import unicodedata
from collections.abc import Iterator

LOOK_BACK = 4096  # characters from the end in which a safe place is looked for first
STRETCH = 1 << 16  # the engine gives up between 4 and 16 times as many
MARKS = " \n.,;:!?\u3001\u3002\uff0c"  # the last three are Chinese and Japanese

_MARK = re.compile(f"[{MARKS}]")
_letters = unicodedata.ucd_3_2_0  # on which all versions of Unicode agree


def is_safe(text: str, place: int) -> bool:
    """Whether a word ends at `place`: a letter or ASCII digit before it, a space, line end or common mark at it.

    None of tiktoken's patterns looks back or joins the two.
    """
    before = text[place - 1]
    return text[place] in MARKS and (before.isalnum() if before.isascii() else _letters.category(before)[0] == "L")


def last_boundary(text: str) -> int:
    """Characters at the start of `text`, itself at a boundary, that may be encoded apart from what follows; 0: none."""
    for place in range(len(text) - 1, max(0, len(text) - LOOK_BACK), -1):
        if is_safe(text, place):
            return place
    return max(_boundaries(text), default=0)


def forced_cuts(text: str) -> list[int]:
    """Places in `text`, itself at a boundary, where too long a stretch is cut. Cheap where there is none."""
    half = STRETCH // 2
    if all(_has_safe_place(text, start, start + half) for start in range(0, len(text) - half, half)):
        return []
    return [place for place in _boundaries(text) if not is_safe(text, place)]


def _has_safe_place(text: str, start: int, end: int) -> bool:
    return any(place and is_safe(text, place) for place in _marks(text, start, end))


def _boundaries(text: str) -> Iterator[int]:
    """Every safe place, and every forced cut between them."""
    last = 0
    for place in (place for place in _marks(text, 1, len(text)) if is_safe(text, place)):
        yield from range(last + STRETCH, place, STRETCH)
        yield place
        last = place
    yield from range(last + STRETCH, len(text), STRETCH)


def _marks(text: str, start: int, end: int) -> Iterator[int]:
    return (match.start() for match in _MARK.finditer(text, start, end))
