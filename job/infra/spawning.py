"""Starting processes that run a part of the job's work."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def no_main_module() -> Generator[None, None, None]:
    """Let a process that starts meanwhile run nothing of the program that starts it: a worker needs none of that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
