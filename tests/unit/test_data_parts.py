"""Large files over HTTP, in parts over several connections, from a real server that misbehaves."""

import hashlib
import random
import threading

import pytest

from job.data import download
from job.data.corpus import pull
from job.errors import DataError, Interrupted, StorageError
from job.infra import parted_file
from job.infra.parted_file import PartedFile, note_of
from tests.unit.data_support import Plan, config_for, no_store, pulled, serving

PART = 100_000
TEXT = random.Random(0).randbytes(1_050_000)  # eleven parts; as bytes it is no text, which nobody reads here
SPANS = [f"bytes={at}-{min(at + PART, len(TEXT)) - 1}" for at in range(0, len(TEXT), PART)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 100 kB, no pause between attempts, and no proxy."""
    monkeypatch.setattr(download, "PART", PART)
    monkeypatch.setattr(download, "WORTH_PARTS", 500_000)
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serving() as running:
        running.plans["/a.txt"] = Plan(TEXT)
        yield running


def config(tmp_path, server, pin="", **settings):
    return config_for(tmp_path, server.url("/a.txt") + pin, **settings)


def content(corpus):
    return corpus.files[0].path.read_bytes()


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def leftovers(tmp_path):
    return list((tmp_path / "cache" / "partial").iterdir())


def test_every_part_is_asked_for_once(tmp_path, server):
    """A large file comes in parts of one version, whose order does not matter, and nothing else is left."""
    file = pulled(config(tmp_path, server)).files[0]

    assert (file.path.read_bytes(), file.sha256) == (TEXT, hashlib.sha256(TEXT).hexdigest())
    assert ranges(server)[0] is None
    assert sorted(ranges(server)[1:]) == sorted(SPANS)
    assert {headers.get("If-Range") for _, headers in server.requests[1:]} == {'"v1"'}
    assert leftovers(tmp_path) == []


def test_several_connections_are_used_at_once(tmp_path, server):
    """As many parts are under way together as there are connections."""
    together, met = threading.Barrier(3, timeout=20), set()

    def meet(*_):
        here = threading.current_thread()
        if here is not threading.main_thread() and here not in met and len(met) < 3:
            met.add(here)
            together.wait()

    assert content(pull(config(tmp_path, server, connections=3), no_store, meet)) == TEXT
    assert len(met) == 3


@pytest.mark.parametrize(
    ("plan", "settings"),
    [
        (Plan(TEXT, ranges=False), {}),
        (Plan(TEXT, etag=None), {}),
        (Plan(TEXT, etag='W/"v1"'), {}),
        (Plan(TEXT), {"connections": 1}),
        (Plan(TEXT[:400_000]), {}),
    ],
    ids=["no ranges", "no version", "weak version", "one connection", "small"],
)
def test_one_stream(tmp_path, server, plan, settings):
    """Where parts cannot be joined safely, or are not worth it, a file comes in one answer."""
    server.plans["/a.txt"] = plan

    assert content(pulled(config(tmp_path, server, **settings))) == plan.content
    assert ranges(server) == [None]


def test_a_server_that_only_claims_ranges(tmp_path, server):
    """A server that answers every request for a part with the whole file is asked for all of it, once."""
    server.plans["/a.txt"] = Plan(TEXT, ranges=False, claims_ranges=True)

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert ranges(server)[-1] is None


def test_cut_parts_go_on_where_they_broke(tmp_path, server):
    """A part whose answer breaks off is asked for from there."""
    server.plans["/a.txt"].cut_after = [len(TEXT), 40_000]

    assert content(pulled(config(tmp_path, server, connections=2))) == TEXT
    assert any(asked and int(asked[6:].partition("-")[0]) % PART == 40_000 for asked in ranges(server))


def test_parts_are_tried_again(tmp_path, server):
    """Answers that may pass do not end a download, as long as they do."""
    whole = server.plans["/a.txt"]

    class Plans(dict):
        """The first answer is whole, the next ones fail."""

        def get(self, path, default):
            return whole if len(server.requests) == 1 else super().get(path, default)

    server.plans = Plans({"/a.txt": Plan(TEXT, fail=[503, 429, 500])})

    assert content(pulled(config(tmp_path, server))) == TEXT


def interrupt(tmp_path, server, parts):
    """Stop a download over one connection at a time when that many parts have come."""
    moved = []

    def stop(done=0, more=0, /):
        moved.append(done)
        if sum(moved) >= parts * PART:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        pull(config(tmp_path, server, connections=2), no_store, stop)
    assert not list((tmp_path / "cache").glob("content/*"))
    server.requests.clear()


def test_a_stopped_download_asks_only_for_the_rest(tmp_path, server):
    """What came before a stop is not asked for again."""
    interrupt(tmp_path, server, parts=8)

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert 0 < len(server.requests) <= 5
    assert None not in ranges(server)


def test_a_killed_download_takes_nothing_for_granted(tmp_path, server):
    """Without a word on which parts are on disk all are asked for again, however long the file is."""
    interrupt(tmp_path, server, parts=8)
    (partial,) = [path for path in leftovers(tmp_path) if not path.suffix]
    with PartedFile(partial, len(TEXT), "another", PART) as fresh:
        del fresh  # what a process leaves that is killed as it begins
        note = note_of(partial).read_bytes().replace(b'"another"', b'"\\"v1\\""')
    note_of(partial).write_bytes(note)

    assert partial.stat().st_size == len(TEXT)
    assert content(pulled(config(tmp_path, server))) == TEXT
    assert sorted(ranges(server)) == sorted(SPANS)


def test_another_version_is_started_over(tmp_path, server):
    """Parts of two versions are never joined."""
    interrupt(tmp_path, server, parts=5)
    server.plans["/a.txt"] = Plan(TEXT[::-1], etag='"v2"')

    assert content(pulled(config(tmp_path, server))) == TEXT[::-1]


def test_a_shorter_version_is_started_over(tmp_path, server):
    """A new version that ends before the part that is asked for is begun from its start."""
    interrupt(tmp_path, server, parts=5)
    server.plans["/a.txt"] = Plan(TEXT[:10], etag='"v2"')

    assert content(pulled(config(tmp_path, server))) == TEXT[:10]


def test_a_part_that_never_comes(tmp_path, server):
    """A server that stops giving is a StorageError after so many attempts; what came is kept for the next start."""
    server.plans["/a.txt"].cut_after = [len(TEXT)] + [PART] * 4 + [0] * 1000
    with pytest.raises(StorageError, match=rf"/a\.txt: .*\({download.ATTEMPTS} attempts\)"):
        pulled(config(tmp_path, server))
    server.plans["/a.txt"].cut_after = []
    server.requests.clear()

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert len(server.requests) < len(SPANS)


def test_a_wrong_hash(tmp_path, server):
    """A file in parts that misses its pin is brought once more, whole, and then refused; nothing is left."""
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, got {hashlib.sha256(TEXT).hexdigest()}"):
        pulled(config(tmp_path, server, f"#sha256={'0' * 64}"))

    assert ranges(server).count(None) == 2
    assert leftovers(tmp_path) == []


def test_a_file_of_parts_is_noted_when_they_are_on_disk(tmp_path, monkeypatch):
    """A process that is killed leaves a note of the parts before, and the next one has them."""
    monkeypatch.setattr(parted_file, "NOTE_BYTES", 20)
    path = tmp_path / "a"
    killed = PartedFile(path, 45, "v1", 10)
    for part in killed.parts[2:0:-1]:
        killed.write(part.start, bytes([part.start]) * 10)
        killed.finish(part)

    with PartedFile(path, 45, "v1", 10) as file:
        assert [part.start for part in file.parts if file.has(part)] == [10, 20]
        assert file.read(file.parts[1]) == bytes([10]) * 10
    assert not note_of(path).exists()


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b'{"bytes": 1050000, "version": "\\"v1\\"", "done": [7]}'])
def test_a_damaged_note(tmp_path, server, note):
    """Parts that nobody can vouch for are asked for again."""
    interrupt(tmp_path, server, parts=5)
    (partial,) = [path for path in leftovers(tmp_path) if not path.suffix]
    note_of(partial).write_bytes(note)

    assert content(pulled(config(tmp_path, server))) == TEXT


def test_too_long_for_the_setting(tmp_path, server):
    """A file begun under another data.max_bytes is held to the present one."""
    interrupt(tmp_path, server, parts=5)
    with pytest.raises(DataError, match=r"1050000 bytes or more, but data\.max_bytes=1000000"):
        pulled(config(tmp_path, server, max_bytes=1_000_000))

    assert leftovers(tmp_path) == []


def test_nothing_is_asked_for_when_all_is_there(tmp_path, server):
    """A version that is in the cache is not brought again, in parts or otherwise."""
    for _ in range(2):
        pulled(config(tmp_path, server))

    assert len(server.requests) == 1 + len(SPANS) + 1
    assert server.requests[-1][1]["If-None-Match"] == '"v1"'
