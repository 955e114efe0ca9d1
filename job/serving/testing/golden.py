"""Answers that are known of released weights, after Raschka, "Build a Large Language Model", chapter 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Golden:
    """How a model is known to go on, greedily, for so many tokens."""

    prompt: str
    text: str
    tokens: int


GOLDEN: Mapping[str, Sequence[Golden]] = {
    "124M": (
        Golden(
            "Every effort moves",
            " forward, but it's not enough.\n\n\"I'm not going to sit here and say, 'I'm not going to do this,'",
            30,
        ),
    )
}
