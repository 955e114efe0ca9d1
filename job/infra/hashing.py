"""Hashing beside other work: hashlib lets go of the interpreter, so a second core does it."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

_STRIDE = 8 << 20  # bytes between two looks whether the work has failed
_LARGE = 32 << 20  # bytes from which a thread is worth its start, and the memory that this needs


@contextmanager
def hashed(content: Sequence[bytes | memoryview]) -> Iterator[Callable[[], str]]:
    """Hash `content` while the block stores it; inside, the yielded function waits for the SHA-256, in hex.

    The pieces are host memory that nobody changes, so those that are hashed are those that are stored: reading them
    twice costs memory bandwidth, hashing them first would cost the time.
    """
    failed = threading.Event()
    if sum(memoryview(piece).nbytes for piece in content) < _LARGE:
        yield lambda: _hash(content, failed)
        return
    with ThreadPoolExecutor(1, "sha256") as pool:
        try:
            digest = pool.submit(_hash, content, failed).result
        except RuntimeError:  # no room for a thread's stack, or too many of them
            digest = partial(_hash, content, failed)
        try:
            yield digest
        except BaseException:
            failed.set()
            raise


def _hash(content: Sequence[bytes | memoryview], failed: threading.Event) -> str:
    digest = hashlib.sha256()
    for piece in content:
        view = memoryview(piece).cast("B")
        for at in range(0, len(view), _STRIDE):
            if failed.is_set():
                return ""
            digest.update(view[at : at + _STRIDE])
    return digest.hexdigest()
