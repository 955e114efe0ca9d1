"""Token files that machines share: taken whole or not at all, and never mixed."""

import json
import threading

import pytest
from structlog.testing import capture_logs

from job.data import prepare as preparation
from job.data.alphabets import ByteTokenizer
from job.data.prepare import prepare
from job.data.shared_tokens import SharedTokens
from job.errors import AccessError, StorageError
from tests.memory_store import MemoryObjectStore
from tests.unit.data_support import config_for, pulled, still


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab\n" * 2000)
    return path


def on_machine(folder, corpus, store):
    """The token files, made or taken on a machine with a cache of its own."""
    config = config_for(folder, corpus, tokenizer="byte", split=(0.8, 0.1, 0.1))
    return prepare(pulled(config), ByteTokenizer(), config, still, shared=store)


def content(files):
    return [(path.name, path.read_bytes()) for split in files.splits for path in split.paths]


def test_the_second_machine_only_downloads(tmp_path, corpus, monkeypatch):
    """What one machine has made another takes, the same bytes, and tokenizes nothing."""
    store = MemoryObjectStore()
    first = on_machine(tmp_path / "1", corpus, store)
    monkeypatch.setattr(preparation, "tokenize", None)

    assert content(on_machine(tmp_path / "2", corpus, store)) == content(first)


def test_what_is_here_already_is_shared(tmp_path, corpus):
    """A machine that had the token files before a shared cache was named puts them there."""
    files = on_machine(tmp_path, corpus, None)
    store = MemoryObjectStore()
    on_machine(tmp_path, corpus, store)

    assert SharedTokens(store, files.fingerprint).complete()


class Slow(MemoryObjectStore):
    """A store on which two machines upload before either has published."""

    def __init__(self):
        super().__init__()
        self.barrier = threading.Barrier(2, timeout=20)

    def create(self, key, content):
        self.barrier.wait()
        return super().create(key, content)


def test_two_machines_at_once_do_not_mix(tmp_path, corpus):
    """Of two machines that made the same, one's files are published, and the other's are gone."""
    store = Slow()
    threads = [threading.Thread(target=on_machine, args=(tmp_path / str(n), corpus, store)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (listed,) = [key for key in store.objects if key.endswith("files.json")]
    facts = json.loads(store.objects[listed])

    assert {key.split("/")[2] for key in store.objects} == {"files.json", facts["folder"]}
    assert len(store.objects) == 1 + len(facts["files"]) == 5


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "list", "list of others"])
def test_damaged_files_are_made_again(tmp_path, corpus, damage):
    """What does not have its hash is not used: it is made here, with a warning, and shared anew."""
    store = MemoryObjectStore()
    first = on_machine(tmp_path / "1", corpus, store)
    key = next(key for key in store.objects if key.endswith("train_000000.bin"))
    listed = next(key for key in store.objects if key.endswith("files.json"))
    if damage == "bit":
        store.objects[key] = store.objects[key][:-1] + b"?"
    elif damage == "cut":
        store.objects[key] = store.objects[key][:-7]
    elif damage == "gone":
        del store.objects[key]
    elif damage == "list":
        store.objects[listed] = store.objects[listed][:-9]
    else:
        store.objects[listed] = store.objects[listed].replace(b"train_0", b"../trai")
    with capture_logs() as logs:
        second = on_machine(tmp_path / "2", corpus, store)

    assert content(second) == content(first)
    assert [log for log in logs if "damaged" in log["event"]]
    assert content(on_machine(tmp_path / "3", corpus, store)) == content(first)


class Refusing:
    """A store of which one verb fails."""

    def __init__(self, inner, verb, error):
        self._inner, self._verb, self._error = inner, verb, error

    def __getattr__(self, name):
        if name == self._verb:
            raise self._error
        return getattr(self._inner, name)


@pytest.mark.parametrize("error", [StorageError("no answer"), AccessError("refused")])
def test_no_answer_is_not_absence(tmp_path, corpus, error):
    """A shared cache that cannot be asked is an error: a hundred machines do not tokenize because of a slip."""
    with pytest.raises(type(error)):
        on_machine(tmp_path, corpus, Refusing(MemoryObjectStore(), "read", error))


def test_a_cache_that_takes_nothing_is_a_warning(tmp_path, corpus):
    """Token files that cannot be shared are used here, with a warning."""
    with capture_logs() as logs:
        files = on_machine(tmp_path, corpus, Refusing(MemoryObjectStore(), "put", AccessError("read only")))

    assert files.train.tokens == 4800
    assert [log["reason"] for log in logs if log["event"].startswith("token files not shared")] == ["read only"]
