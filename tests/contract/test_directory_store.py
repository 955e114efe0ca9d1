"""The object store on a folder keeps the contract."""

import pytest

from job.infra.object_store import DirectoryObjectStore
from tests.contract.object_store_contract import ObjectStoreContract


class TestDirectoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return DirectoryObjectStore(tmp_path / "new" / "store")
