"""Lists of addresses, and several files pulled at once."""

import threading
import time

import pytest

from job.data.corpus import pull
from job.data.together import all_at_once
from job.errors import ConfigError, DataError, Interrupted, NotFoundError
from tests.memory_store import MemoryObjectStore
from tests.unit.data_support import Plan, config_for, pulled, serving, still


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    return tmp_path


def names(corpus):
    return [file.path.read_text() for file in corpus.files]


def test_a_manifest_lists_addresses(folder):
    """Each line is an address, relative to the manifest; comments and empty lines are none; the order is kept."""
    (folder / "texts" / "all.manifest").write_text(f"# a list\n\nc.txt\r\n  a.txt  \n{folder}/texts/b.txt\n")

    assert names(pulled(config_for(folder, folder / "texts" / "all.manifest"))) == ["c", "a", "b"]


def test_a_manifest_is_the_corpus_that_it_lists(folder):
    """The same files, listed or named, are the same corpus."""
    (folder / "all.manifest").write_text("texts/a.txt\ntexts/b.txt\n")
    named = pulled(config_for(folder, folder / "texts/a.txt", folder / "texts/b.txt"))

    assert pulled(config_for(folder, folder / "all.manifest")).fingerprint == named.fingerprint


def test_pins_in_a_manifest_hold(folder):
    """A line may pin its file; another content is an error."""
    (folder / "all.manifest").write_text(f"texts/a.txt#sha256={'0' * 64}\n")
    with pytest.raises(DataError, match="expected sha256 0000"):
        pulled(config_for(folder, folder / "all.manifest"))


def test_a_manifest_over_https(folder, server):
    """A manifest on a server lists files there by their relative addresses."""
    server.plans = {
        "/data/all.manifest": Plan(b"a.txt\n/b.txt\n", headers={}),
        "/data/a.txt": Plan(b"one"),
        "/b.txt": Plan(b"two"),
    }

    assert names(pulled(config_for(folder, server.url("/data/all.manifest")))) == ["one", "two"]


def test_a_manifest_on_the_object_store(tmp_path):
    """A manifest in a bucket lists objects beside it."""
    store = MemoryObjectStore({"crawl/all.manifest": b"1.txt\ndeep/\n", "crawl/1.txt": b"1", "crawl/deep/2.txt": b"2"})
    store.uri = "s3://bucket"
    corpus = pull(config_for(tmp_path, "s3://bucket/crawl/all.manifest"), lambda uri: store, still)

    assert [file.uri for file in corpus.files] == ["s3://bucket/crawl/1.txt", "s3://bucket/crawl/deep/2.txt"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"# nothing\n", DataError, "a manifest without an address"),
        (b"\xff\xfe", DataError, "not UTF-8 at byte 0"),
        (b"ftp://host/a.txt\nbuiltin:x\ngopher://b\n", ConfigError, "all.manifest: data.corpus: gopher://b"),
        (b"other.manifest\n", ConfigError, "manifests in a manifest"),
        (b"texts/z.txt\n", NotFoundError, "z.txt"),
        (b"texts/notes.pdf\n", NotFoundError, "notes.pdf"),
    ],
)
def test_bad_manifests(folder, content, error, message):
    """A manifest that lists nothing, or what cannot be had, is refused with its name or the entry's."""
    (folder / "all.manifest").write_bytes(content)
    with pytest.raises(error, match=message):
        pulled(config_for(folder, folder / "all.manifest"))


def test_files_come_at_once_and_in_order(folder, server):
    """Four downloads are under way together, and the corpus has them in the order of its entries."""
    server.plans = {f"/{number}.txt": Plan(str(number).encode()) for number in range(12)}
    together = threading.Barrier(4, timeout=20)
    waited = set()

    def meet(*_):
        if len(waited) < 4 and threading.current_thread() not in waited and "Pool" in threading.current_thread().name:
            waited.add(threading.current_thread())
            together.wait()

    config = config_for(folder, *(server.url(f"/{number}.txt") for number in range(12)))
    corpus = pull(config, lambda uri: None, meet)

    assert names(corpus) == [str(number) for number in range(12)]
    assert len(waited) == 4


def test_one_failure_ends_the_others(folder, server):
    """A file that is not there ends the pull while other downloads still run."""
    server.plans = {"/a.txt": Plan(b"x" * (64 << 20)), "/b.txt": Plan(status=404)}
    with pytest.raises(NotFoundError, match=r"b\.txt: 404"):
        pulled(config_for(folder, server.url("/a.txt"), server.url("/b.txt")))


def test_a_stop_ends_all():
    """A stop asked for while several wait ends them, and is what is raised."""
    stopping = threading.Event()

    def work(number, still_wanted):
        while True:
            time.sleep(0.01)
            if number == 3:
                stopping.set()
            still_wanted()

    def advance(*_):
        if stopping.is_set():
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        all_at_once(work, range(8), 4, advance)
