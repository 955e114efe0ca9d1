"""Server-sent events: what is in a stream, however the network cuts it."""

import pytest

from job.serving.testing.sse import EventStream

TEXT = (
    'data: {"text": "größer"}\n\n: a comment\n\ndata:no space\n\n'
    "event: x\ndata: two\ndata:  lines\nid: 3\n\ndata: [DONE]\n\n"
)
EVENTS = ['{"text": "größer"}', "no space", "two\n lines", "[DONE]"]


def events(*pieces):
    stream = EventStream()
    return [data for piece in pieces for data in stream.add(piece)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_pieces_of_a_size(end, size):
    """Pieces of any size carry the same events, characters and line ends cut in two among them."""
    content = TEXT.replace("\n", end).encode()
    pieces = [content[start : start + size] for start in range(0, len(content), size)]

    assert events(*pieces) == EVENTS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_split(end):
    """Cut in two at any byte, a stream carries the same events."""
    content = TEXT.replace("\n", end).encode()

    for place in range(len(content) + 1):
        assert events(content[:place], content[place:]) == EVENTS, place


def test_an_event_is_given_when_it_is_whole():
    """An event comes with its empty line, not before and not later."""
    stream = EventStream()

    assert stream.add(b"data: 1\n") == []
    assert stream.add(b"\ndata: 2") == ["1"]
    assert stream.add(b"\n\n") == ["2"]


def test_a_cut_event_is_none():
    """What the end of a stream cuts is no event."""
    assert events(b"data: 1\n\ndata: 2\n") == ["1"]


def test_lines_may_end_with_carriage_returns():
    """A carriage return alone ends a line too."""
    assert events(b"data: 1\r\rdata: 2\r\r:\r") == ["1", "2"]
