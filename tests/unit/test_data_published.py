"""Token shards of others: from elsewhere, of both widths, and what is said when one lacks or is short."""

import numpy as np
import pytest

from job.data import published
from job.data.alphabets import ByteTokenizer
from job.data.corpus import pull
from job.data.prepare import prepare
from job.errors import DataError, NotFoundError
from tests.memory_store import MemoryObjectStore
from tests.unit.data_support import Plan, config_for, no_store, pulled, serving, still

WIDTHS = {"uint16": (20240520, 1, "<u2"), "uint32": (20240801, 7, "<u4")}


def shard(tokens, width="uint16", announced=None):
    """A shard as llm.c writes it."""
    magic, version, dtype = WIDTHS[width]
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if announced is None else announced
    return header.tobytes() + np.array(tokens, dtype).tobytes()


def tokens(split):
    return split.open().window(0, split.tokens).tolist()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


def prepared(config, open_store=no_store):
    return prepare(pull(config, open_store, still), ByteTokenizer(), config, still)


@pytest.mark.parametrize("width", WIDTHS)
def test_over_http(tmp_path, server, width):
    """Shards of a web server are read as they are, train in the order of the list, across their borders."""
    server.plans = {
        "/fineweb_train_000001.bin": Plan(shard([1, 2, 3], width)),
        "/fineweb_train_000002.bin": Plan(shard([4, 256], width)),
        "/fineweb_val_000000.bin": Plan(shard([7, 8], width)),
    }
    files = prepared(config_for(tmp_path, *(server.url(path) for path in reversed(server.plans))))

    assert (tokens(files.train), tokens(files.validation)) == ([4, 256, 1, 2, 3], [7, 8])
    assert files.train.documents == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_below_a_prefix(tmp_path, width):
    """So are the objects below a prefix, in the order of their names."""
    store = MemoryObjectStore({f"web/train_{n:03}.bin": shard([n, n + 1], width) for n in (1, 2, 3)})
    store.uri = "s3://bucket"
    files = prepared(config_for(tmp_path, "s3://bucket/web/"), lambda uri: store)

    assert tokens(files.train) == [1, 2, 2, 3, 3, 4]


def test_a_missing_shard(tmp_path, server):
    """A shard that the server does not have is named."""
    server.plans["/train_000001.bin"] = Plan(shard([1, 2]))
    with pytest.raises(NotFoundError, match=r"/train_000002\.bin: 404"):
        pulled(config_for(tmp_path, server.url("/train_000001.bin"), server.url("/train_000002.bin")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (shard([1, 2, 3])[:-1], "1029 bytes, but 3 tokens of 2 bytes were announced"),
        (shard([1, 2, 3], "uint32")[:-4], "1032 bytes, but 3 tokens of 4 bytes were announced"),
        (shard([1, 2], announced=100), "1028 bytes, but 100 tokens"),
        (shard([1, 2], announced=-1), "1028 bytes, but -1 tokens"),
        (b"\0" * 2000, "magic 0 version 0 is no token file"),
        (b"<html>", "6 bytes, shorter than a token file's header"),
        (shard([1, 300]), "token 300, but byte has 257 tokens"),
    ],
)
def test_a_bad_shard_is_named_by_its_address(tmp_path, server, content, message):
    """A shard that is short, or none, is refused by the address it came from, not by its place in the cache."""
    server.plans["/train_000001.bin"] = Plan(content)
    with pytest.raises(DataError, match=f"{server.url('/train_000001.bin')}: {message}"):
        prepared(config_for(tmp_path, server.url("/train_000001.bin")))


def test_a_gap_in_the_numbers_of_a_folder(tmp_path):
    """A folder whose shards lack one is refused before any is read; shards that are named need not be all."""
    for number in (8, 9, 11):
        (tmp_path / f"train_{number:06}.bin").write_bytes(shard([1, 2]))
    with pytest.raises(NotFoundError, match=r"train_000011\.bin, but no .*/train_000010\.bin; to do without it"):
        pulled(config_for(tmp_path, tmp_path))

    named = (tmp_path / f"train_{number:06}.bin" for number in (8, 11))
    assert len(pulled(config_for(tmp_path, *named)).files) == 2


def test_a_gap_in_the_numbers_of_a_prefix(tmp_path):
    """So is a prefix, each kind of shard by itself."""
    store = MemoryObjectStore({f"web/{name}.bin": shard([1, 2]) for name in ("val_0", "train_1", "train_2", "train_4")})
    store.uri = "s3://bucket"
    with pytest.raises(NotFoundError, match=r"s3://bucket/web/ has .*but no web/train_3\.bin"):
        pull(config_for(tmp_path, "s3://bucket/web"), lambda uri: store, still)


def test_shards_are_read_through_once(tmp_path, monkeypatch):
    """What was counted in shards is noted by their content: the next start does not read them."""
    (tmp_path / "train.bin").write_bytes(shard([1, 256, 3, 256]))
    config = config_for(tmp_path, tmp_path / "train.bin")
    first = prepared(config)
    monkeypatch.setattr(published, "open_shard", None)

    assert prepared(config) == first
    assert (first.train.tokens, first.train.documents) == (4, 2)


def test_what_is_noted_is_of_the_content(tmp_path):
    """Other tokens under the same name are counted again."""
    path = tmp_path / "train.bin"
    path.write_bytes(shard([1, 256, 3, 256]))
    prepared(config_for(tmp_path, path))
    path.write_bytes(shard([1, 2, 3, 4, 5]))
    train = prepared(config_for(tmp_path, path)).train

    assert (train.tokens, train.documents) == (5, 0)
