"""Makes `reliability-report.json` and a table of the lines that the tests of faults left behind.

python -m tests.chaos.report LINES FOLDER
"""

import json
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

_SUMMED = ("cases", "kills", "seconds", "saves", "mutated")


def build(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums by test and by group; `equal` only where every case that compared was equal."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    tests: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in lines:
        if "group" in line:
            groups[line["group"]][line["name"]] += line["count"]
        else:
            _include(tests[line["test"]], line)
    return {
        "tests": {name: dict(tests[name]) for name in sorted(tests)},
        **{name: dict(sorted(counts.items())) for name, counts in sorted(groups.items())},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "boto3", "botocore", "numpy", "safetensors")},
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def _include(test: dict[str, Any], line: Mapping[str, Any]) -> None:
    """Add one case, or several that were run as one, to what is known of a test."""
    for name in _SUMMED:
        if name in line:
            test[name] = round(test.get(name, 0) + line[name], 3)
    if "seed" in line:
        test["seeds"] = sorted({*test.get("seeds", []), line["seed"]})
    if "equal" in line:
        test["equal"] = test.get("equal", True) and line["equal"]
    if "worst_steps_lost" in line:
        test["worst_steps_lost"] = max(test.get("worst_steps_lost", 0), line["worst_steps_lost"])


def table(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    columns = ("cases", "kills", "equal", "worst_steps_lost", "seeds", "seconds")
    rows = [("test", *columns), ("---",) * (len(columns) + 1)]
    rows += [(name, *(_cell(test.get(column)) for column in columns)) for name, test in report["tests"].items()]
    parts = [["| " + " | ".join(row) + " |" for row in rows]]
    for group, counts in report.items():
        if group not in {"tests", "versions"}:
            parts.append([f"| {group} | count |", "|---|---|", *(f"| {name} | {n} |" for name, n in counts.items())])
    parts.append([", ".join(f"{name} {value}" for name, value in report["versions"].items())])
    return "# Reliability report\n\n" + "\n\n".join("\n".join(part) for part in parts) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(lines: Path, folder: Path) -> None:
    """Read the lines, write both files."""
    report = build(json.loads(line) for line in lines.read_text().splitlines())
    (folder / "reliability-report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "reliability-report.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
