"""Tokenizing by processes: the same tokens for any number of them, and nothing done twice after a stop."""

import json
import os
import random
import signal

import pytest

from job.data import encoding, shards, token_files, tokenizing
from job.data.bpe import BpeTokenizer
from job.data.encoding import encoders
from job.data.gpt2_files import PATTERN
from job.data.prepare import prepare
from job.data.splits import Segment
from job.errors import Interrupted, JobError
from tests.unit.data_support import config_for, pulled, still

SHARD = 5_000  # tokens


@pytest.fixture(scope="module")
def tokenizer():
    """Letters in pairs, and an end of text."""
    pairs = [bytes([one, other]) for one in b"abcdefgh" for other in b"abcdefgh"]
    ranks = {bytes([byte]): byte for byte in range(256)} | {pair: 256 + n for n, pair in enumerate(pairs)}
    return BpeTokenizer("pairs", PATTERN, ranks, {"<|endoftext|>": 320})


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """500 documents in batches of about five, shards of 5,000 tokens."""
    monkeypatch.setattr(tokenizing, "BATCH", 1000)
    monkeypatch.setattr(tokenizing, "JOURNAL_EVERY", 3)
    for module in (shards, token_files, tokenizing):
        monkeypatch.setattr(module, "SHARD_TOKENS", SHARD)
    draw = random.Random(1)
    lines = ("".join(draw.choices("abcdefgh é\n", k=draw.randrange(1, 400))) for _ in range(500))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def prepared(folder, corpus, tokenizer, advance=still, **settings):
    config = config_for(folder, corpus, split=(0.8, 0.1, 0.1), **settings)
    return prepare(pulled(config), tokenizer, config, advance)


def content(files):
    """Every shard's name and bytes, and what is known of each split."""
    facts = [(split.name, split.tokens, split.bytes, split.characters, split.documents) for split in files.splits]
    return facts, [(path.name, path.read_bytes()) for split in files.splits for path in split.paths]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_show(tmp_path, corpus, tokenizer, workers):
    """Shards are the same, byte for byte, with processes and without."""
    alone = prepared(tmp_path / "0", corpus, tokenizer, tokenizer_workers=0)
    shared = prepared(tmp_path / "n", corpus, tokenizer, tokenizer_workers=workers)

    assert content(shared) == content(alone)
    assert len(alone.train.paths) > 5


def test_a_dead_worker_is_an_error(tokenizer):
    """A worker that was killed ends the work with a clear error, and does not hang."""
    before = set(encoding_children())
    with encoders(tokenizer, 1, 0) as (encode, _):
        assert len(encode([Segment(0, "abc", True, True)])[0].tokens) == 3
        (worker,) = set(encoding_children()) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(JobError, match=r"died \(exit code -9\).*data\.tokenizer_workers"):
            encode([Segment(0, "abc", True, True)])


def test_workers_end_with_their_work(tokenizer):
    """No process is left when the work is done."""
    with encoders(tokenizer, 2, 0) as (encode, threads):
        encode([Segment(0, "abc", True, True)])
        assert threads == 2

    assert not encoding_children()


def encoding_children():
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children()]


class Stop:
    """Asks to stop, by this error, once so many batches were encoded."""

    def __init__(self, monkeypatch, batches, error):
        self.encoded, self._batches, self._error = 0, batches, error
        real = encoding.encode_batch

        def counted(batch, tokenizer):
            self.encoded += 1
            return real(batch, tokenizer)

        monkeypatch.setattr(encoding, "encode_batch", counted)

    def __call__(self):
        if self._batches is not None and self.encoded >= self._batches:
            raise self._error


@pytest.mark.parametrize("error", [Interrupted("asked to stop"), KeyboardInterrupt()], ids=["stopped", "killed"])
def test_finished_shards_are_not_made_again(tmp_path, corpus, tokenizer, monkeypatch, error):
    """What was stopped, or died, goes on from its last note: the same shards, and finished ones are left alone."""
    monkeypatch.setattr("job.data.compression.READ_BYTES", 5000)
    whole = content(prepared(tmp_path / "whole", corpus, tokenizer, tokenizer_workers=0))
    stop = Stop(monkeypatch, 60, error)
    with pytest.raises(type(error)):
        prepared(tmp_path, corpus, tokenizer, stop, tokenizer_workers=0)
    (partial,) = (tmp_path / "cache" / "tokens").iterdir()
    first = partial / "train_000000.bin"
    before = first.stat().st_ino, first.stat().st_mtime_ns
    with (partial / "train_000001.bin").open("ab") as file:
        if file.tell() < 1024 + 2 * SHARD:
            file.write(b"written after the last note, or torn")
    first_half, stop.encoded, stop._batches = stop.encoded, 0, None
    again = prepared(tmp_path, corpus, tokenizer, stop, tokenizer_workers=0)

    assert content(again) == whole
    assert (again.train.paths[0].stat().st_ino, again.train.paths[0].stat().st_mtime_ns) == before
    assert first_half + stop.encoded < 500 * 200 / 1000 + 15  # of about a hundred batches


@pytest.mark.parametrize("damage", ["journal", "shard", "other batches"])
def test_a_damaged_beginning_is_made_again(tmp_path, corpus, tokenizer, monkeypatch, damage):
    """When journal and shards do not fit each other, or batches would be others, everything is made anew."""
    monkeypatch.setattr("job.data.compression.READ_BYTES", 5000)
    whole = content(prepared(tmp_path / "whole", corpus, tokenizer, tokenizer_workers=0))
    with pytest.raises(Interrupted):
        prepared(tmp_path, corpus, tokenizer, Stop(monkeypatch, 60, Interrupted("")), tokenizer_workers=0)
    (partial,) = (tmp_path / "cache" / "tokens").iterdir()
    if damage == "journal":
        (partial / "journal.json").write_text('{"format": 1, "splits": {')
    elif damage == "shard":
        (partial / "train_000000.bin").write_bytes(b"short")
    else:
        monkeypatch.setattr(tokenizing, "BATCH", 1100)
    again = prepared(tmp_path, corpus, tokenizer, tokenizer_workers=0)

    assert content(again) == whole
    assert not list((tmp_path / "cache" / "tokens").glob(".*"))
    assert not list(again.train.paths[0].parent.glob("journal*"))
