"""A store whose failures are counted keeps the contract, and counts each verb by its own name."""

import inspect

import pytest

from job.errors import AccessError, StorageError
from job.infra.counted_store import CountedStore
from job.infra.metrics import OPERATIONS, OTHER
from job.infra.object_store import ObjectStore
from tests.contract.object_store_contract import ObjectStoreContract
from tests.memory_store import MemoryObjectStore

VERBS = {name: method for name, method in inspect.getmembers(ObjectStore, inspect.isfunction) if name[0] != "_"}


class FailingStore(MemoryObjectStore):
    """A store that answers every call with one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __getattribute__(self, name):
        if name in VERBS:
            raise self.error
        return super().__getattribute__(name)


def failures(error, verb):
    """What is counted when `verb` fails, after the error has come through."""
    counted = []
    store = CountedStore(FailingStore(error), counted.append)
    with pytest.raises(type(error)):
        getattr(store, verb)(*list(inspect.signature(VERBS[verb]).parameters)[1:])
    return counted


class TestCountedStore(ObjectStoreContract):
    @pytest.fixture
    def store(self):
        self.counted = []
        return CountedStore(MemoryObjectStore(), self.counted.append)

    @pytest.fixture
    def cut_write(self, store):
        """What the inner store is told to have been cut."""
        return store._inner.begun.add

    def test_success_is_not_counted(self, store):
        """Calls that do what they should, an absent key among them, count nothing."""
        store.put("a", [b"1"])
        assert not store.create("a", b"2")
        with pytest.raises(KeyError):
            store.read("b")

        assert self.counted == []


@pytest.mark.parametrize("error", [StorageError("503"), AccessError("403")])
@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_is_counted_once(verb, error):
    """Each call that storage did not answer, or refused, is one more under its verb."""
    assert failures(error, verb) == [verb]


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_failure_of_storage_is_not_counted(verb):
    """An absent key is an answer."""
    assert failures(KeyError("absent"), verb) == []


def test_metrics_know_every_verb():
    """Each verb of the protocol has a series of its own."""
    assert set(OPERATIONS) == {*VERBS, OTHER}
