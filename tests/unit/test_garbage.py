"""When Python does not look for garbage."""

import gc
import subprocess
import sys

import pytest

from job.infra.garbage import only_importing


def test_garbage_is_looked_for_again_afterwards():
    """Not inside the block, and again after it, also when it ends with an error."""
    with pytest.raises(ImportError), only_importing():
        assert not gc.isenabled()
        raise ImportError

    assert gc.isenabled()


def test_what_was_imported_is_not_looked_through_again():
    """What the block made is left out of later searches; garbage made after it is still found."""
    code = """import gc
from job.infra.garbage import only_importing
with only_importing(): import json, decimal
frozen = gc.get_freeze_count()
cycle = []; cycle.append(cycle); del cycle
print(frozen > 1000, gc.collect() > 0)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split() == ["True", "True"]
