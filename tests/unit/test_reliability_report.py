"""The reliability report says what the tests left behind, no more and no less."""

import json

import pytest

from tests.chaos import evidence, report


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """What two tests left behind."""
    monkeypatch.setenv("RELIABILITY_EVIDENCE", str(tmp_path / "lines"))
    evidence.add_all("faults", {"stall": 2, "wrong": 1})
    evidence.add("faults", "stall", 3)
    evidence.case("R-01", cases=2, kills=2, seed=1, seconds=1.5, equal=True, worst_steps_lost=4)
    evidence.case("R-01", cases=1, kills=1, seed=2, seconds=0.5, equal=True, worst_steps_lost=5)
    evidence.case("R-06", cases=1, equal=False)
    evidence.case("R-06", cases=1, equal=True)
    return tmp_path / "lines"


def test_sums(lines, tmp_path):
    """Cases, kills and seconds are added up, seeds collected, the worst kept; one unequal case makes a test unequal."""
    report.main(lines, tmp_path)
    found = json.loads((tmp_path / "reliability-report.json").read_text())

    assert found["faults"] == {"stall": 5, "wrong": 1}
    assert found["tests"] == {
        "R-01": {"cases": 3, "kills": 3, "seconds": 2.0, "seeds": [1, 2], "equal": True, "worst_steps_lost": 5},
        "R-06": {"cases": 2, "equal": False},
    }


def test_table(lines, tmp_path):
    """The table has a row for each test and each fault, and does not hide what was not equal."""
    report.main(lines, tmp_path)
    rows = (tmp_path / "reliability-report.md").read_text().splitlines()

    assert "| R-01 | 3 | 3 | yes | 5 | 1, 2 | 2.0 |" in rows
    assert "| R-06 | 2 |  | NO |  |  |  |" in rows
    assert "| stall | 5 |" in rows


def test_no_evidence_is_kept_unasked(tmp_path, monkeypatch):
    """Without $RELIABILITY_EVIDENCE nothing is written."""
    monkeypatch.delenv("RELIABILITY_EVIDENCE", raising=False)
    monkeypatch.chdir(tmp_path)
    evidence.case("R-01", cases=1)

    assert list(tmp_path.iterdir()) == []
