"""Token files on disk, and the one stream of tokens that they are together."""

import pickle
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.data.shards import HEADER_BYTES, ShardWriter, TokenSplit, open_shard, token_type
from job.errors import DataError, StorageError


def write(folder, tokens, vocab_size=257, shard_tokens=100):
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, "train", token_type(vocab_size), shard_tokens) as writer:
        for some in np.array_split(np.asarray(tokens), 7):
            writer.write(some)
    return writer.paths


@pytest.mark.parametrize(
    ("vocab_size", "magic", "version", "width"), [(65_536, 20240520, 1, 2), (65_537, 20240801, 7, 4)]
)
def test_the_header_is_that_of_llm_c(tmp_path, vocab_size, magic, version, width):
    """A shard begins with 256 little-endian int32, magic, version and count first; narrow tokens where they fit."""
    (path,) = write(tmp_path, [1, 2, vocab_size - 1], vocab_size)
    content = path.read_bytes()

    assert path.name == "train_000000.bin"
    assert struct.unpack("<256i", content[:1024])[:4] == (magic, version, 3, 0)
    assert len(content) == HEADER_BYTES + 3 * width
    assert open_shard(path).tolist() == [1, 2, vocab_size - 1]


def test_shards_are_filled(tmp_path):
    """Every shard but the last holds the same number of tokens."""
    paths = write(tmp_path, range(250))

    assert [path.name for path in paths] == ["train_000000.bin", "train_000001.bin", "train_000002.bin"]
    assert [len(open_shard(path)) for path in paths] == [100, 100, 50]


def test_an_exact_fit_leaves_no_empty_shard(tmp_path):
    """No shard is begun before there is a token for it."""
    assert len(write(tmp_path, range(200))) == 2
    assert write(tmp_path / "none", []) == []


def test_a_shard_that_was_not_finished_is_refused(tmp_path):
    """A writer that ends by an error leaves nothing that reads as a shard."""
    with suppress(KeyboardInterrupt), ShardWriter(tmp_path, "train", token_type(257)) as writer:
        writer.write(np.arange(10))
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="is no token file"):
        open_shard(tmp_path / "train_000000.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "1223 bytes, but 100 tokens"),
        (lambda content: content + b"\0", "1225 bytes, but 100 tokens"),
        (lambda content: content[:1000], "shorter than a token file's header"),
        (lambda content: content[:5], "shorter than a token file's header"),
        (lambda content: b"", "shorter than a token file's header"),
        (lambda content: b"\0\0\0\0" + content[4:], "magic 0 version 1 is no token file"),
        (lambda content: content[:4] + struct.pack("<i", 7) + content[8:], "version 7 is no token file"),
        (lambda content: content[:8] + struct.pack("<i", -1) + content[12:], "-1 tokens"),
    ],
)
def test_damaged_shards(tmp_path, damage, message):
    """A shard whose header, count and size do not agree is refused with its name."""
    (path,) = write(tmp_path, range(100))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"train_000000\.bin: .*{message}"):
        open_shard(path)


def test_a_missing_shard(tmp_path):
    """A shard that is not there is an error with its name."""
    with pytest.raises(StorageError, match=r"gone\.bin"):
        TokenSplit([tmp_path / "gone.bin"])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_windows_cross_shards(tmp_path_factory, data):
    """Windows read the same tokens however these lie in shards."""
    tokens = np.arange(data.draw(st.integers(1, 400), label="tokens")) * 7 % 60_000
    shard_tokens = data.draw(st.integers(10, 150), label="shard_tokens")
    length = data.draw(st.integers(1, len(tokens)), label="length")
    starts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=8), label="starts"), np.int64)
    split = TokenSplit(write(tmp_path_factory.mktemp("shards"), tokens, shard_tokens=shard_tokens))
    found = split.windows(starts, length)

    assert len(split) == len(tokens)
    assert found.dtype == np.int64
    assert found.tolist() == [tokens[start : start + length].tolist() for start in starts.tolist()]


@pytest.mark.parametrize("shard_tokens", [30, 1000])
@pytest.mark.parametrize("start", [-1, 92, 100])
def test_windows_stay_inside(tmp_path, shard_tokens, start):
    """A window that would leave the split is an error, not other tokens."""
    split = TokenSplit(write(tmp_path, range(100), shard_tokens=shard_tokens))
    assert split.window(91, 9).tolist() == list(range(91, 100))
    with pytest.raises(IndexError):
        split.window(start, 9)


def test_no_shards():
    """A split without shards has no tokens."""
    assert len(TokenSplit([])) == 0


def test_a_split_travels_as_names(tmp_path):
    """Sending a split to another process sends the names of its files, not their content."""
    split = TokenSplit(write(tmp_path, range(5000), shard_tokens=10_000))
    sent = pickle.dumps(split)

    assert len(sent) < 1000
    assert pickle.loads(sent).window(4000, 3).tolist() == [4000, 4001, 4002]
