"""What the `checkpoints` commands say to people: their reports as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from job.checkpoint.audit import Problem

Report = Mapping[str, Any]
_SHOWN = 20  # rows of one kind; --json has all


def list_lines(rows: Sequence[Report]) -> Iterator[str]:
    """A heading, and a line for each checkpoint."""
    yield "  seq     step  val_loss         bytes  objects  pinned  valid  chain"
    for row in rows:
        yield (
            f"{row['seq']:>5} {row['step']:>8}  {_loss(row):>8} {row['bytes']:>13,}  {row['objects']:>7}  "
            f"{'yes' if row['pinned'] else 'no':<6}  {'yes' if row['valid'] else 'NO':<5}  {row['chain'][:12]}"
        )


def _loss(row: Report) -> str:
    return "-" if row["val_loss"] is None else f"{row['val_loss']:.4f}"


def verify_lines(report: Report) -> Iterator[str]:
    """Each part of the run, whole or not, and a line for each damage."""
    yield from _part("run.json", "", report["run"])
    yield from _part("log", _count(report["log"]["records"], "record"), report["log"])
    yield from _part("history", f"{_count(report['history']['segments'], 'segment')} of the past", report["history"])
    for row in report["checkpoints"]:
        yield from _part(f"step {row['step']}", f"record {row['seq']}, {row['bytes']:,} bytes", row)
    if left := report["leftovers"]:
        yield f"left over: {_count(len(left), 'object')} of earlier attempts that no readable record names"
        yield from _some([f"  {key}" for key in left])
    problems = damages(report)
    yield f"DAMAGED: {_count(len(problems), 'problem')}" if problems else "VALID"


def damages(report: Report) -> list[Problem]:
    """Every damage of a report of `verify`."""
    parts = [report["run"], report["log"], report["history"], *report["checkpoints"]]
    return [Problem(**problem) for part in parts for problem in part["problems"]]


def _part(name: str, facts: str, part: Report) -> Iterator[str]:
    yield f"{name:<12} {'DAMAGED' if part['problems'] else 'whole':<8} {facts}".rstrip()
    for problem in part["problems"]:
        yield f"  {Problem(**problem)}"


def prune_lines(report: Report) -> Iterator[str]:
    """What goes, what stays and why that is safe."""
    keep = report["keep"]
    yield f"keep the last {keep['keep_last']}, every {keep['keep_every'] or '-'}th, best: {_yes(keep['keep_best'])}"
    word = "would remove" if report["dry_run"] else "removed"
    for label, rows in ((word, report["removed"]), ("kept", report["kept"])):
        for row in rows:
            facts = f"step {row['step']:>8}  record {row['seq']:>5}  loss {_loss(row):>8}  {row['bytes']:>13,} bytes"
            yield f"{label:<13} {facts}"
    if not report["removed"]:
        yield "nothing to remove" + ("" if report["taken_over"] else ": nothing was written")
        return
    steps = " and ".join(str(step) for step in report["verified"])
    yield f"read back in full: steps {steps}"
    if report["dry_run"]:
        yield f"{report['bytes']:,} bytes in {_count(report['objects'], 'object')} would go; nothing was written"
        return
    yield f"{report['bytes']:,} bytes are gone"
    yield "a job that was training here ends with 73 at its next save: start it again"


def diff_lines(report: Report) -> Iterator[str]:
    """The two checkpoints, what differs in each part of them, since when, and EQUAL or DIFFERENT."""
    for name, side in zip(("first", "second"), report["checkpoints"], strict=True):
        yield f"{name:<10} {side['run_uri']}  step {side['step']}  record {side['seq']}  chain {side['chain'][:12]}"
    for kind, found in report["tensors"].items():
        rows = found["different"]
        yield f"{kind:<10} {_count(found['compared'], 'tensor')}, {f'{len(rows)} differ' if rows else 'equal'}"
        yield from _some([f"  {_tensor(row)}" for row in rows])
    for section, fields in report["fields"].items():
        if fields:
            yield section
            yield from _some([f"  {name}: {first} | {second}" for name, (first, second) in fields.items()])
    yield from _steps(report["history"])
    yield "EQUAL" if report["equal"] else "DIFFERENT"


def _tensor(row: Report) -> str:
    if "unequal" not in row:
        return f"{row['name']}: {row['first'] or 'absent'} | {row['second'] or 'absent'}"
    largest = "" if row["max_difference"] is None else f", by up to {row['max_difference']:.3g}"
    return f"{row['name']} {row['first']}: {row['unequal']:,} of {row['elements']:,} elements{largest}"


def _steps(found: Report) -> Iterator[str]:
    if not found["logged_by_both"]:
        return
    agreed = "none equal" if found["equal_up_to_step"] is None else f"equal up to step {found['equal_up_to_step']}"
    yield f"steps      {found['logged_by_both']} logged by both, {agreed}"
    if different := found["first_difference"]:
        first, second = different["loss"]
        yield f"  step {different['step']} is the first that differs: loss {first} | {second}"


def _some(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"  ... and {len(lines) - _SHOWN} more (--json has all)"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
