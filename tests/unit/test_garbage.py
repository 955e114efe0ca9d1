"""When Python does not look for garbage."""

import gc
import subprocess
import sys
from contextlib import suppress

from job.infra.garbage import only_importing


def test_garbage_is_looked_for_again_afterwards():
    """Not inside the block, and again after it, also when it ends with an error."""
    inside = []
    with suppress(ImportError), only_importing():
        inside.append(gc.isenabled())
        import no_such_module  # noqa: F401

    assert (inside, gc.isenabled()) == ([False], True)


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
