"""The object store on a folder keeps the contract."""

import multiprocessing
import os

import pytest

from job.infra.directory_store import DirectoryObjectStore
from tests.contract.object_store_contract import ObjectStoreContract

_fork = multiprocessing.get_context("fork")


class TestDirectoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return DirectoryObjectStore(tmp_path / "new" / "store")

    @pytest.fixture
    def cut_write(self, tmp_path):
        """A process that is killed when it has written the first piece."""

        def cut(key):
            store = DirectoryObjectStore(tmp_path / "new" / "store", moved=lambda: os.kill(os.getpid(), 9))
            process = _fork.Process(target=store.put, args=(key, [b"one", b"two"]))
            process.start()
            process.join()

            assert process.exitcode == -9

        return cut
