"""The first of the negative controls, at every commit; `make mutants` tries all of them."""

import pytest

from tests.chaos.mutants import AT_EVERY_COMMIT, MUTANTS, ROOT, survives


@pytest.mark.parametrize("mutant", MUTANTS[:AT_EVERY_COMMIT], ids=lambda mutant: mutant.name)
def test_a_fault_turns_the_tests_red(mutant):
    """With this fault in the code, a test that is there to notice it fails."""
    assert survives(mutant) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_still_fits_the_code(mutant):
    """What a fault changes stands in its file exactly once: a fault that changes nothing would prove nothing."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
