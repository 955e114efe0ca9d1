"""Hashing beside other work."""

import hashlib
import threading

from job.infra import hashing

CONTENT = [b"x" * hashing._LARGE, b"y"]


def test_without_room_for_a_thread():
    """Where no thread can be started, what is stored is hashed all the same."""
    before = threading.stack_size(1 << 50)  # bytes, that no machine has
    try:
        with hashing.hashed(CONTENT) as digest:
            found = digest()
    finally:
        threading.stack_size(before)

    assert found == hashlib.sha256(b"".join(CONTENT)).hexdigest()
