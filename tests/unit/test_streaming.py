"""Text that is given while tokens arrive."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.streaming import TextStream

BYTES = ByteTokenizer()


def pieces(text, stops=(), tokenizer=BYTES):
    """What a stream gives after each token of `text`, and at the end."""
    stream = TextStream(tokenizer, stops)
    return [*(stream.add(int(token)) for token in tokenizer.encode(text)), stream.end()], stream


def test_whole_characters_come_at_once():
    """A character of one byte is given with its token."""
    assert pieces("abc")[0] == ["a", "b", "c", ""]


def test_incomplete_utf8_waits():
    """A character of several bytes is given when its last byte is there."""
    assert pieces("a\u20acb")[0] == ["a", "", "", "\u20ac", "b", ""]


def test_broken_utf8_does_not_hold_back_the_rest():
    """Bytes that nothing can complete become U+FFFD as soon as that is sure, and what follows is not kept waiting."""
    stream = TextStream(BYTES)
    given = [stream.add(token) for token in (0xFF, 0xFF, 0xE2, 0x41, 0x42)] + [stream.end()]

    assert given == ["", "\ufffd", "\ufffd", "\ufffdA", "B", ""]


def test_the_end_gives_what_is_left():
    """Bytes of a character that never became whole are U+FFFD at the end."""
    stream = TextStream(BYTES)

    assert (stream.add(0xE2), stream.end(), stream.text) == ("", "\ufffd", "\ufffd")


def test_a_stop_string_across_tokens():
    """A stop string ends the text before it, and none of it is given before that is sure."""
    given, stream = pieces("one\n\ntwo", ["\n\n"])

    assert given == ["o", "n", "e", "", "", "", "", "", ""]
    assert (stream.text, stream.stopped) == ("one", True)


def test_half_a_stop_string_is_text():
    """What began like a stop string and went on otherwise is given whole."""
    given, stream = pieces("a\nb\n", ["\n\n"])

    assert given == ["a", "", "\nb", "", "\n"]
    assert not stream.stopped


class Words(CharTokenizer):
    """A token stands for several characters."""

    def __init__(self):
        super().__init__("ab")

    def decode(self, tokens):
        return "".join(["hello. W", "orld"][token] for token in tokens)


def test_the_first_stop_string_counts():
    """Of several stop strings, also in one token, the one that is whole first ends the text."""
    assert pieces("abcd", ["cd", "bc"])[1].text == "a"
    assert TextStream(Words(), ["W", "l", "o"]).add(0) == "he"


def test_the_stop_string_that_is_whole_first_counts():
    """A shorter stop string within a longer one ends the text, whether the rest comes in the same token or never."""
    assert pieces("aba", ["b", "aba"])[1].text == "a"
    assert TextStream(Words(), ["l", "ello"]).add(0) == "he"


def test_of_stop_strings_that_end_together_the_longer_counts():
    """Nothing of the longer one is left in the text."""
    assert pieces("abc", ["c", "bc"])[1].text == "a"


def test_an_empty_stop_string_is_none():
    """An empty stop string stops nothing."""
    assert pieces("abc", [""])[1].text == "abc"


def test_a_stop_string_inside_a_token():
    """A stop string that ends in the middle of a token cuts the token's text."""
    stream = TextStream(Words(), ["."])

    assert (stream.add(0), stream.add(1), stream.end()) == ("hello", "", "")


SHORT = st.text("ab\u20ac", min_size=1, max_size=3)


@given(st.text() | st.text("ab\u20ac"), st.lists(SHORT, max_size=3))
@example("aba", ["b", "aba"])
def test_pieces_make_the_text(text, stops):
    """Whatever comes in, the pieces put together are the text up to the first stop string."""
    given_pieces, stream = pieces(text, stops)
    whole = BYTES.decode(BYTES.encode(text))
    ends = [(place + len(stop), place) for stop in stops if (place := whole.find(stop)) >= 0]

    assert "".join(given_pieces) == stream.text == (whole[: min(ends)[1]] if ends else whole)
    assert stream.stopped == bool(ends)


@pytest.mark.parametrize("text", ["\U0001f600\u20ac\u00e4x", "\ufffd\ufffd"])
def test_no_piece_is_taken_back(text):
    """The pieces are the text's, each once."""
    assert "".join(pieces(text)[0]) == text
