"""What the tests of faults have seen, as JSON lines in the file that `$RELIABILITY_EVIDENCE` names, if it does.

`tests/chaos/report.py` makes the table of it. A test adds its case last, so that a failed one is not in the evidence.
"""

import json
import os
from collections.abc import Mapping


def add(group: str, name: str, count: int = 1) -> None:
    """Count something, such as faults of a kind or visits of a point."""
    _write({"group": group, "name": name, "count": count})


def add_all(group: str, counts: Mapping[str, int]) -> None:
    """Count several things of a group."""
    for name, count in counts.items():
        add(group, name, count)


def case(test_id: str, **facts: object) -> None:
    """Note that a test of RELIABILITY's table has passed.

    Args:
        test_id: As there, "R-06".
        facts: cases, kills, seed, seconds, equal, worst_steps_lost, and what else belongs to it.
    """
    _write({"test": test_id, **facts})


def _write(line: Mapping[str, object]) -> None:
    if path := os.environ.get("RELIABILITY_EVIDENCE"):
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 - one write, appended whole by every process
            file.write(json.dumps(line, sort_keys=True) + "\n")
