"""Hashes of corpus files that are noted: what is read again, and what never passes for what it was."""

import hashlib
import os
import time

import pytest

from job.data import known_hashes
from job.data.alphabets import ByteTokenizer
from job.data.known_hashes import known_hash
from job.data.prepare import prepare
from job.errors import DataError
from tests.unit.data_support import config_for, pulled, still

LARGE = b"text " * 400_000  # 2 MB


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file that is large enough to be noted, and old enough."""
    monkeypatch.setattr(known_hashes, "SETTLED", 0)
    path = tmp_path / "a.txt"
    path.write_bytes(LARGE)
    time.sleep(0.05)  # the clock of the file system moves on
    return path


class Counted:
    """An `advance` that counts the bytes that were read."""

    def __init__(self):
        self.read = 0

    def __call__(self, done=0, more=0, /):
        self.read += done


def hashed(folder, path):
    counted = Counted()
    found, _ = known_hash(folder, path, counted)
    return found, counted.read


def test_what_was_not_touched_is_not_read_again(tmp_path, corpus):
    """The second time the hash of a file comes from the note."""
    assert hashed(tmp_path / "cache", corpus) == (sha256(LARGE), len(LARGE))
    assert hashed(tmp_path / "cache", corpus) == (sha256(LARGE), 0)


def test_a_corpus_starts_without_reading_its_files(tmp_path, corpus, monkeypatch):
    """Pulling a local corpus a second time hashes nothing, and finds the same."""
    first = pulled(config_for(tmp_path, corpus))
    monkeypatch.setattr(known_hashes, "hash_file", None)

    assert pulled(config_for(tmp_path, corpus)) == first


@pytest.mark.parametrize("times", ["as they come", "set back"])
def test_a_file_changed_in_place_is_read_again(tmp_path, corpus, times):
    """Other bytes of the same length in the same file are noticed, even when its times are set to what they were."""
    before = corpus.stat()
    known_hash(tmp_path / "cache", corpus, still)
    with corpus.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"x")
    if times == "set back":
        os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert hashed(tmp_path / "cache", corpus)[0] == sha256(LARGE[:1_000_000] + b"x" + LARGE[1_000_001:])


def test_another_file_of_the_same_name_is_read_again(tmp_path, corpus):
    """A file that took another's place, length and time is not taken for it."""
    before = corpus.stat()
    known_hash(tmp_path / "cache", corpus, still)
    other = tmp_path / "other"
    other.write_bytes(LARGE[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(corpus)

    assert hashed(tmp_path / "cache", corpus)[0] == sha256(LARGE[::-1])


def test_what_was_changed_just_now_is_not_noted(tmp_path, corpus, monkeypatch):
    """A file as young as the clock of a file system is coarse is read each time."""
    monkeypatch.setattr(known_hashes, "SETTLED", 60_000_000_000)
    for _ in range(2):
        assert hashed(tmp_path / "cache", corpus) == (sha256(LARGE), len(LARGE))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stamp": null}'])
def test_a_damaged_note_is_passed_over(tmp_path, corpus, content):
    """Where the note cannot be read, the file is."""
    known_hash(tmp_path / "cache", corpus, still)
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    note.write_bytes(content)

    assert hashed(tmp_path / "cache", corpus) == (sha256(LARGE), len(LARGE))


def test_a_file_changed_while_it_is_hashed(tmp_path, corpus):
    """Of a file that somebody writes to no hash is given."""

    def meddle(*_):
        os.truncate(corpus, len(LARGE) + 4)

    with pytest.raises(DataError, match=r"a\.txt: changed while it was read; start again"):
        known_hash(tmp_path / "cache", corpus, meddle)


def test_a_file_changed_while_it_is_tokenized(tmp_path, corpus):
    """Tokens of other bytes than those of the fingerprint are not kept, and the next start makes the right ones."""
    config = config_for(tmp_path, corpus, tokenizer="byte", split=(0.9, 0.1))
    before = pulled(config)
    corpus.write_bytes(LARGE.upper())
    with pytest.raises(DataError, match=r"a\.txt: changed while it was read"):
        prepare(before, ByteTokenizer(), config, still)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []

    train = prepare(pulled(config), ByteTokenizer(), config, still).train
    assert bytes(train.open().window(0, 4).tolist()) == b"TEXT"
