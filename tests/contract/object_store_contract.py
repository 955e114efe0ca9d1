"""What every object store promises, as tests that any implementation can inherit."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from job.errors import Interrupted


class ObjectStoreContract:
    """What any ObjectStore must do.

    Subclasses provide the `store` fixture: empty, and with parts of 5 MiB if any; and `cut_write`, which begins
    to write an object of two parts and never ends, as a process that was killed does.
    """

    def test_get_returns_what_put_stored(self, store, tmp_path):
        """An object comes back byte for byte."""
        store.put("a/b", [b"abc"])
        store.get("a/b", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == b"abc"

    def test_pieces_are_one_object(self, store):
        """An object given in pieces, some of them empty, is their concatenation."""
        store.put("a", [b"", b"ab", memoryview(b"0123")[1:3], b"", b"c"])

        assert store.read("a") == b"ab12c"

    @pytest.mark.parametrize("content", [[], [b""]])
    def test_empty_object(self, store, tmp_path, content):
        """An object without bytes is an object like any other."""
        store.put("empty", content)
        digest = store.get("empty", tmp_path / "out")

        assert digest == hashlib.sha256().hexdigest()
        assert (tmp_path / "out").read_bytes() == store.read("empty") == b""
        assert (store.size("empty"), store.keys("")) == (0, ["empty"])

    def test_get_returns_the_hash(self, store, tmp_path):
        """`get` returns the SHA-256 of what it wrote."""
        store.put("a", [b"abc"])

        assert store.get("a", tmp_path / "out") == hashlib.sha256(b"abc").hexdigest()

    @pytest.mark.parametrize("size", [0, 3, (11 << 20) + 1])
    def test_get_tells_how_far_it_is(self, store, tmp_path, size):
        """`get` names every byte that comes, in one part or several."""
        store.put("a", [bytes(size)])
        moved = []
        store.get("a", tmp_path / "out", moved.append)

        assert sum(moved) == size

    def test_get_can_be_stopped(self, store, tmp_path):
        """Whoever watches a `get` may end it."""

        def stop(count):
            raise Interrupted("asked to stop")

        store.put("a", [b"abc"])
        with pytest.raises(Interrupted):
            store.get("a", tmp_path / "out", stop)

    def test_versions(self, store):
        """An object's version is the same until others bytes are put, even as many."""
        store.put("a", [b"abc"])
        before = store.version("a"), store.version("a")
        store.put("a", [b"abd"])

        assert before[0] == before[1] != store.version("a")
        with pytest.raises(KeyError):
            store.version("b")

    @pytest.mark.parametrize("size", [0, 3, (16 << 20) + 1])
    def test_put_returns_the_hash(self, store, size):
        """`put` returns the SHA-256 of what it stored, of one piece or several, of one part or several."""
        content = random.Random(0).randbytes(size)
        view = memoryview(content)

        assert store.put("a", [view[:2], view[2:]]) == hashlib.sha256(content).hexdigest()

    @pytest.mark.parametrize("size", [0, 3, (16 << 20) + 1])
    def test_digest(self, store, size):
        """`digest` is the SHA-256 of what is stored, in one part or several."""
        content = random.Random(0).randbytes(size)
        store.put("a", [content])

        assert store.digest("a") == hashlib.sha256(content).hexdigest()

    def test_digest_is_of_what_is_there(self, store):
        """`digest` reads: it does not repeat what `put` said."""
        store.put("a", [b"abc"])
        store.put("a", [b"abd"])

        assert store.digest("a") == hashlib.sha256(b"abd").hexdigest()

    def test_get_replaces_the_target(self, store, tmp_path):
        """A longer file that was there before leaves nothing behind."""
        (tmp_path / "out").write_bytes(b"something longer")
        store.put("a", [b"abc"])
        store.get("a", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == b"abc"

    def test_large_object(self, store, tmp_path):
        """An object of several parts, cut elsewhere than its pieces, comes back whole and hashed in order."""
        content = random.Random(0).randbytes((16 << 20) + 1)
        view = memoryview(content)
        store.put("large", [view[:7], view[7 : 6 << 20], view[6 << 20 :]])
        digest = store.get("large", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == content
        assert digest == hashlib.sha256(content).hexdigest()
        assert store.size("large") == len(content)

    def test_put_replaces(self, store):
        """The last `put` counts."""
        store.put("a", [b"old and long"])
        store.put("a", [b"new"])

        assert store.read("a") == b"new"

    def test_size(self, store):
        """`size` counts bytes."""
        store.put("a", [b"abc", b"de"])

        assert store.size("a") == 5

    def test_create_wins_once(self, store):
        """A second `create` is refused and changes nothing."""
        assert [store.create("log/1", b"first"), store.create("log/1", b"second")] == [True, False]
        assert store.read("log/1") == b"first"

    def test_create_respects_put(self, store):
        """`create` does not replace what `put` stored."""
        store.put("a", [b"put"])

        assert not store.create("a", b"created")
        assert store.read("a") == b"put"

    def test_create_after_delete(self, store):
        """A key that was deleted is free again."""
        store.create("a", b"first")
        store.delete("a")

        assert store.create("a", b"second")
        assert store.read("a") == b"second"

    def test_racing_creates_have_one_winner(self, store):
        """Of 16 writers at once exactly one creates the object, and it is the one that is told so."""
        start = Barrier(16)

        def race(writer):
            start.wait()
            return store.create("log/1", f"writer {writer}".encode())

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(16)))

        assert won.count(True) == 1
        assert store.read("log/1") == f"writer {won.index(True)}".encode()

    def test_missing_object(self, store, tmp_path):
        """Reading an absent key in any way raises KeyError and leaves no file."""
        store.put("a/b", [b"a neighbour"])
        for read in (lambda key: store.get(key, tmp_path / "out"), store.digest, store.read, store.size):
            for key in ("nope", "a", "a/c", "nope/nope"):
                with pytest.raises(KeyError):
                    read(key)

        assert not (tmp_path / "out").exists()

    def test_empty_store_has_no_keys(self, store):
        """A store that was never written to is empty."""
        assert store.keys("") == store.keys("log/") == []

    def test_keys_are_sorted(self, store):
        """Keys come in the order of their characters, whatever order they were written in."""
        for key in ("b", "a/10", "a/9", "a-b", "Z"):
            store.put(key, [b""])

        assert store.keys("") == ["Z", "a-b", "a/10", "a/9", "b"]

    def test_keys_with_a_prefix(self, store):
        """A prefix is characters, not a folder."""
        for key in ("log/1", "log/2", "logs/1", "lo", "a/log/1"):
            store.put(key, [b""])

        assert store.keys("log/") == ["log/1", "log/2"]
        assert store.keys("log") == ["log/1", "log/2", "logs/1"]
        assert store.keys("a/l") == ["a/log/1"]
        assert store.keys("nope/") == store.keys("/") == []

    def test_keys_are_complete(self, store):
        """A listing of several pages is whole."""
        keys = [f"log/{n:04d}" for n in range(250)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: store.put(key, [b"."]), keys))

        assert store.keys("log/") == keys

    def test_delete(self, store):
        """A deleted object is gone, its neighbours are not."""
        store.put("a/b", [b"abc"])
        store.put("a/c", [b"abc"])
        store.delete("a/b")

        assert store.keys("") == ["a/c"]

    def test_delete_twice(self, store):
        """Deleting what is not there is no error."""
        store.put("a", [b"abc"])
        store.delete("a")
        store.delete("a")
        store.delete("never/was")

        assert store.keys("") == []

    def test_objects_are_seen_whole(self, store):
        """Who reads while an object is being replaced sees the old one or the new one."""
        versions = [bytes([n]) * 300_000 for n in range(20)]
        store.put("a", versions[:1])

        def write():
            for version in versions:
                store.put("a", [version[:1000], version[1000:]])

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            seen = [store.read("a")]
            while not writing.done():
                seen.append(store.read("a"))

        assert writing.exception() is None
        assert set(seen) <= set(versions)

    def test_writers_and_deleters_do_not_hinder_each_other(self, store):
        """Neighbours that come and go at the same time are all stored and all deleted."""

        def come_and_go(writer):
            for n in range(10):
                store.put(f"data/{writer}/{n}", [b"abc"])
                store.delete(f"data/{writer}/{n}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, range(4)))

        assert store.keys("") == []

    def test_nothing_is_unfinished(self, store):
        """Writes that ended, well or refused, leave nothing unfinished; nor does a store that was never written to."""
        assert store.unfinished("") == []
        store.put("a", [bytes(11 << 20)])
        store.create("log/1", b"first")
        store.create("log/1", b"second")

        assert store.unfinished("") == store.unfinished("log/") == []

    def test_cut_writes_are_found(self, store, cut_write):
        """A write that began and never ended is no object, and is found by its key, once, sorted, by prefix."""
        for key in ("data/2/b", "data/1/a", "data/1/a", "run.json"):
            cut_write(key)

        assert store.keys("") == []
        assert store.unfinished("") == ["data/1/a", "data/2/b", "run.json"]
        assert store.unfinished("data/") == ["data/1/a", "data/2/b"]
        assert store.unfinished("data/1/a") == ["data/1/a"]
        assert store.unfinished("nope/") == []

    def test_cut_writes_are_abandoned(self, store, cut_write):
        """Abandoning frees every cut write of a key, and touches neither its neighbours nor the object itself."""
        store.put("data/1/a", [b"whole"])
        for key in ("data/1/a", "data/1/a", "data/1/ab", "data/2/c"):
            cut_write(key)
        store.abandon("data/1/a")

        assert store.unfinished("") == ["data/1/ab", "data/2/c"]
        assert store.read("data/1/a") == b"whole"

    def test_abandon_twice(self, store, cut_write):
        """Abandoning what is not there is no error, and the key can be written again."""
        cut_write("data/1/a")
        store.abandon("data/1/a")
        store.abandon("data/1/a")
        store.abandon("never/was")
        store.put("data/1/a", [b"abc"])

        assert store.unfinished("") == []
        assert store.read("data/1/a") == b"abc"
