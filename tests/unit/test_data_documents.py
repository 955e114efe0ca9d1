"""Files as documents: what is in them, and what is refused."""

import gzip
import json
import subprocess
import sys
import textwrap

import pytest
import zstandard

from job.data import compression
from job.data import lines as line_reader
from job.data.documents import read_documents
from job.data.formats import format_of
from job.errors import ConfigError, DataError, Interrupted
from tests.unit.data_support import config_for, published, pulled, still


def texts(tmp_path, *files, **settings):
    """The documents of these files, whole."""
    config = config_for(tmp_path, *files, **settings)
    return ["".join(document.pieces()) for document in read_documents(pulled(config), config, still)]


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.txt", "text", None),
        ("A.MD", "text", None),
        ("a.b.txt.gz", "text", "gzip"),
        ("a.jsonl.zst", "jsonl", "zstd"),
    ],
)
def test_formats(name, kind, compression):
    """The format follows from the name, in any case."""
    found = format_of(name)

    assert (found.kind, found.compression) == (kind, compression)


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.gz", "a.pdf.gz", "txt", ".txt", "a.txt.bz2"])
def test_unknown_formats(name):
    """Other names have no format."""
    assert format_of(name) is None


def test_a_text_is_one_document(tmp_path, write):
    """Each .txt and .md file is one document, as it is: line ends and spaces kept."""
    files = [write("a.txt", "one\r\ntwo\rthree\n\n  "), write("b.md", "# four\x00")]

    assert texts(tmp_path, *files) == ["one\r\ntwo\rthree\n\n  ", "# four\x00"]


def test_the_verdict(tmp_path):
    """the-verdict.txt has the 20,479 characters that the tutorial prints."""
    assert len(texts(tmp_path, published("the-verdict.txt"))[0]) == 20_479


def test_a_line_is_a_document(tmp_path, write):
    """Each line of a .jsonl file is one document; empty lines and empty texts are none."""
    lines = [{"text": "one\ntwo"}, {"text": ""}, {"id": 3, "text": "três"}]
    file = write("a.jsonl", "\n\n".join(json.dumps(line) for line in lines))

    assert texts(tmp_path, file) == ["one\ntwo", "três"]


def test_text_field(tmp_path, write):
    """`data.text_field` names where the text is."""
    assert texts(tmp_path, write("a.jsonl", '{"body": "one"}'), text_field="body") == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_byte_order_mark(tmp_path, write, name):
    """A byte order mark at the start is dropped; elsewhere it is a character."""
    body = "a\ufeffb" if name == "a.txt" else '{"text": "a\ufeffb"}'

    assert texts(tmp_path, write(name, "\ufeff" + body)) == ["a\ufeffb"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_characters_across_pieces(tmp_path, write, monkeypatch, size):
    """A character whose bytes are in two pieces is whole."""
    monkeypatch.setattr(compression, "READ_BYTES", size)

    assert texts(tmp_path, write("a.txt", "\ufeffaé漢😀" * 9)) == ["aé漢😀" + "\ufeffaé漢😀" * 8]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_compressed(tmp_path, write, pack, name):
    """Compressed files read like plain ones, in several members or frames too."""
    suffix = ".gz" if pack is gzip.compress else ".zst"
    lines = [json.dumps({"text": f"text {number}"}) + "\n" for number in range(100_000)]
    plain = write(name, "".join(lines))
    packed = write(name + suffix, pack("".join(lines[:7]).encode()) + pack("".join(lines[7:]).encode()))

    assert texts(tmp_path, packed) == texts(tmp_path, plain)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_damaged_archives(tmp_path, write, pack):
    """A compressed file that is cut short or altered is refused, wherever it is."""
    suffix = ".gz" if pack is gzip.compress else ".zst"
    whole = pack(bytes(range(32, 127)) * 30)
    for number, broken in enumerate([*(whole[:end] for end in range(1, len(whole))), b"\x00" + whole[1:]]):
        with pytest.raises(DataError, match=r"cut short|damaged|not UTF-8"):
            texts(tmp_path, write(f"{number}.txt{suffix}", broken))


BOMB = """
    import sys
    from pathlib import Path
    from job.data.documents import read_documents
    from job.errors import DataError
    from tests.unit.data_support import config_for, peak_memory, pulled, still

    config = config_for(Path(sys.argv[1]), sys.argv[2])
    before = peak_memory()
    try:
        for document in read_documents(pulled(config), config, still):
            for piece in document.pieces():
                pass
    except DataError as error:
        print(error)
    print(peak_memory() - before)
"""


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_bombs(tmp_path, write, suffix, pytestconfig):
    """A file that unpacks to far more than 200 times its size is refused before it fills the memory."""
    if suffix == ".gz":
        member = gzip.compress(bytes(64 << 20))
        bomb = member * 16
    else:
        bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20)) * 4
    file = write(f"bomb.txt{suffix}", bomb)
    refusal, grown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB), str(tmp_path), str(file)],
        capture_output=True,
        text=True,
        check=True,
        cwd=pytestconfig.rootpath,
    ).stdout.splitlines()[-2:]

    assert "more than 200 to 1" in refusal
    assert int(grown) < 256  # MiB


def test_max_bytes_after_decompression(tmp_path, write):
    """A compressed file may not grow past data.max_bytes."""
    file = write("a.txt.gz", gzip.compress(b"abc" * 1000))
    with pytest.raises(DataError, match=r"data\.max_bytes=2999 after decompression"):
        texts(tmp_path, file, max_bytes=2999)


def test_zstd_without_the_module(tmp_path, write, monkeypatch):
    """A .zst file without the module for it is an error with the command that installs it."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt-pretrain-job\[zstd\]'"):
        texts(tmp_path, write("a.txt.zst", b"(\xb5/\xfd"))


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_not_utf8(tmp_path, write, monkeypatch, size):
    """Bytes that are not UTF-8 are refused with the file and the place."""
    monkeypatch.setattr(compression, "READ_BYTES", size)
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 5"):
        texts(tmp_path, write("a.txt", b"ab\xc3\xa9c\xffd"))


def test_utf8_cut_short(tmp_path, write):
    """A text that ends inside a character is refused with the place."""
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 2"):
        texts(tmp_path, write("a.txt", b"ab\xc3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 2: not JSON"),
        (b'{"body": "a"}', r"line 2: no text under 'text'"),
        (b'{"text": 3}', r"line 2: no text under 'text'"),
        (b'["text"]', r"line 2: no text under 'text'"),
        (b'{"text": "\\ud800"}', r"line 2: half of a surrogate pair"),
        (b'{"text": "\xff"}', r"line 2: not UTF-8 at byte 27 of the file"),
        (b'{"n": ' + b"9" * 5000 + b"}", r"line 2: not JSON"),
        (b"[" * 100_000, r"line 2: not JSON"),
    ],
)
def test_bad_lines(tmp_path, write, line, message):
    """A line that holds no text is refused with the file and its number."""
    with pytest.raises(DataError, match=r"a\.jsonl, " + message):
        texts(tmp_path, write("a.jsonl", b'{"text": "good"}\n' + line + b"\n"))


def test_endless_line(tmp_path, write, monkeypatch):
    """A line longer than memory should hold is refused."""
    monkeypatch.setattr(line_reader, "LONGEST_LINE", 100)
    with pytest.raises(DataError, match="line 2: longer than 100 bytes"):
        texts(tmp_path, write("a.jsonl", '{"text": "good"}\n{"text": "' + "a" * 200))


@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_empty_corpus(tmp_path, write, content):
    """A corpus without a character is refused."""
    with pytest.raises(DataError, match=r"the corpus is empty: .*a\.txt"):
        texts(tmp_path, write("a.txt", content))


def test_reading_reports_progress(tmp_path, write):
    """Reading calls `advance` as bytes move, and stops when that raises."""
    config = config_for(tmp_path, write("a.txt", "a" * (5 << 20)))
    corpus = pulled(config)
    calls = []

    def stop_at_the_fourth(*_):
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        list(next(iter(read_documents(corpus, config, stop_at_the_fourth))).pieces())


def test_a_document_can_be_read_twice(tmp_path, write):
    """`pieces` begins at the start each time."""
    config = config_for(tmp_path, write("a.txt", "ab" * (1 << 20)))
    document = next(iter(read_documents(pulled(config), config, still)))

    assert "".join(document.pieces()) == "".join(document.pieces())


def test_pieces_are_small(tmp_path, write):
    """A long text comes in pieces of about a megabyte."""
    config = config_for(tmp_path, write("a.txt", "ab" * (5 << 20)))
    document = next(iter(read_documents(pulled(config), config, still)))

    assert max(map(len, document.pieces())) <= 1 << 20
