"""Text that has no place to be cut: what becomes of it, however it arrives."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.data import boundaries
from job.data.boundaries import STRETCH, forced_cuts
from job.data.bpe import BpeTokenizer
from job.data.gpt2_files import PATTERN
from job.data.splits import safe_pieces
from tests.unit.data_support import published

PAIRS = [bytes([one, other]) for one in b"a \n1" for other in b"a \n1"]


@pytest.fixture(scope="module")
def tokenizer():
    """GPT-2's words, and tokens of which pairs show where a cut has been."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {pair: 256 + n for n, pair in enumerate(PAIRS)}
    return BpeTokenizer("pairs", PATTERN, ranks, {})


@pytest.mark.parametrize("text", [" " * 1_000_000 + "x", "\n" * 1_000_000 + "x", "a" * 1_000_000, "-" * 1_000_000])
def test_a_million_times_the_same(tokenizer, text):
    """A run on which tiktoken's regular expressions run out of stack, or its merges of time, is encoded."""
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_only_long_stretches_are_cut():
    """A stretch of the allowed length is whole; one character more, and it is cut after that length."""
    assert forced_cuts("word " + "-" * (STRETCH - 2) + "x y " * 100_000) == []
    assert forced_cuts("word" + "-" * (2 * STRETCH) + "x y") == [STRETCH, 2 * STRETCH]
    assert forced_cuts("word " + "-" * STRETCH + "x y") == [4 + STRETCH]


def test_the_verdict_is_not_cut():
    """Ordinary text has a safe place in every few words."""
    assert forced_cuts(published("tinyshakespeare.txt").read_text()) == []


texts = st.text(st.sampled_from("aa11  \n-é."), max_size=120)


@settings(max_examples=500, deadline=None)
@given(texts, st.lists(st.integers(0, 120), max_size=8))
def test_pieces_do_not_matter(tokenizer, text, places):
    """However a text with long stretches is handed over, its tokens are those of the whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "STRETCH", 8)
        patch.setattr(boundaries, "LOOK_BACK", 4)
        ends = [0, *sorted(place for place in places if place < len(text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(ends)]
        found = [token for part in safe_pieces(pieces, tokenizer) for token in tokenizer.encode_ordinary(part).tolist()]

        assert found == tokenizer.encode_ordinary(text).tolist()


def test_an_endless_word_is_not_held(tokenizer):
    """Of a word without an end no more is held than a stretch and a piece."""
    parts = list(safe_pieces(("a" * 100_000 for _ in range(50)), tokenizer))

    assert max(map(len, parts)) <= STRETCH + 100_000
    assert sum(map(len, parts)) == 5_000_000
