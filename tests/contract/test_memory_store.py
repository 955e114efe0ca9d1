"""The store in memory that the protocol's tests play histories on keeps the same promises as the real ones."""

import pytest

from tests.contract.object_store_contract import ObjectStoreContract
from tests.memory_store import MemoryObjectStore


class TestMemoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self):
        return MemoryObjectStore()

    @pytest.fixture
    def cut_write(self, store):
        """What the protocol's tests say to have been cut."""
        return store.begun.add
