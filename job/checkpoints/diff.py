"""The `checkpoints diff` command: which tensors and fields differ between two checkpoints, and since which step.

Two checkpoints are EQUAL when training goes on from both alike: the same tensors bit for bit, the same tokenizer, the
same chain of steps and the same state but for the time it took. What else their records say is shown beside that.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.checkpoint import history
from job.checkpoint.choice import choose, open_run
from job.checkpoint.events import past_events
from job.checkpoint.files import STATE
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.checkpoint.tensor_diff import compare
from job.checkpoint.verify import Rejected, fetch
from job.config import Config
from job.errors import DataError
from job.infra.storage import open_store
from job.tensor_file import DamagedTensors, TensorEntry, read_contents

_SECTIONS = ("config", "identity", "numerics", "code", "corpus", "eval")
_FACTS = ("step", "tokens", "data_offset", "chain", "tokenizer_sha256", "numerics_changed")
_TIME = "seconds"  # of state.json: never the same twice

Fields = dict[str, list[Any]]  # name -> [first, second], where they differ


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints."""

    checkpoints: CheckpointStore
    record: Record

    def fetch(self, names: Sequence[str], folder: Path) -> Path:
        """Its files of these names in `folder`, each hashed on the way. DataError when one is damaged."""
        folder.mkdir()
        try:
            return fetch(self.checkpoints.objects, self.record, folder, names)
        except Rejected as rejected:
            raise DataError(f"{self}: {rejected}") from rejected

    def names(self) -> list[str]:
        """Names of its files."""
        return [stored.name for stored in self.record.objects]

    def plain(self) -> dict[str, Any]:
        """What identifies it, as JSON values."""
        uri, record = self.checkpoints.objects.uri, self.record
        return {"run_uri": uri, "seq": record.seq, "step": record.step, "chain": record.chain}

    def __str__(self) -> str:
        return f"{self.checkpoints.objects.uri}: checkpoint of step {self.record.step}"


def diff_checkpoints(first: Config, which: str, second: Config, other: str) -> dict[str, Any]:
    """What differs between two checkpoints; each of their files is read once and verified.

    Args:
        first: Where the one is.
        which: best, last or a step of it.
        second: Where the other is.
        other: best, last or a step of that.

    Raises:
        NotFoundError: There is no such run or checkpoint.
        DataError: A file is damaged, so that nothing can be said about it.
    """
    return diff_sides(_side(first, which), _side(second, other))


def diff_sides(*sides: Side) -> dict[str, Any]:
    """What differs between two checkpoints, of one store or of two."""
    tensors = {kind: _tensors(sides, kind) for kind in _kinds(sides)}
    state = _state(sides)
    facts = [{name: side.record.facts.get(name) for name in _FACTS} for side in sides]
    records = {"record": _fields(*facts)}
    records |= {name: _fields(*(side.record.facts.get(name) for side in sides)) for name in _SECTIONS}
    same_line = not records["record"].keys() & {"step", "chain", "tokenizer_sha256"}
    return {
        "equal": same_line and not state.keys() - {_TIME} and not any(rows["different"] for rows in tensors.values()),
        "checkpoints": [side.plain() for side in sides],
        "tensors": tensors,
        "fields": {"state": state, **records},
        "history": _history(sides),
    }


def _side(config: Config, which: str) -> Side:
    checkpoints = open_run(open_store(config.run_uri, config.storage))
    return Side(checkpoints, choose(checkpoints, which)[0])


def _kinds(sides: Sequence[Side]) -> list[str]:
    """model, optimizer: what the tensor files of both are called before a rank's number."""
    return sorted({_kind(name) for side in sides for name in side.names() if name.endswith(".safetensors")})


def _kind(name: str) -> str:
    return name.partition(".")[0].partition("-")[0]


def _tensors(sides: Sequence[Side], kind: str) -> dict[str, Any]:
    """How many tensors of a kind there are on both sides together, and those that differ."""
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        first, second = (_contents(side, kind, Path(folder) / str(n)) for n, side in enumerate(sides))
        names = sorted(first.keys() | second.keys())
        rows = [_tensor(name, first.get(name), second.get(name)) for name in names]
    return {"compared": len(names), "different": [row for row in rows if row]}


def _contents(side: Side, kind: str, folder: Path) -> dict[str, TensorEntry]:
    names = [name for name in side.names() if name.endswith(".safetensors") and _kind(name) == kind]
    side.fetch(names, folder)
    try:
        return {name: tensor for file in names for name, tensor in read_contents(folder / file).items()}
    except DamagedTensors as error:
        raise DataError(f"{side}: {kind}: {error}") from error


def _tensor(name: str, first: TensorEntry | None, second: TensorEntry | None) -> dict[str, Any] | None:
    """How a tensor differs; None when it does not. Without `unequal` there is nothing to count."""
    row = {"name": name, "first": first and str(first), "second": second and str(second)}
    if first is None or second is None or str(first) != str(second):
        return row
    found = compare(first, second)
    if not found.unequal:
        return None
    return {**row, "elements": first.elements, "unequal": found.unequal, "max_difference": found.largest}


def _state(sides: Sequence[Side]) -> Fields:
    return _fields(*(_read_state(side) for side in sides))


def _read_state(side: Side) -> Any:
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        try:
            return json.loads((side.fetch([STATE], Path(folder) / "state") / STATE).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{side}: {STATE}: {error}") from error


def _fields(first: Any, second: Any) -> Fields:
    """Fields at any depth, by dotted name, that are not the same."""
    one, two = _flat(first or {}), _flat(second or {})
    return {
        name: [one.get(name), two.get(name)]
        for name in [*one, *(name for name in two if name not in one)]
        if one.get(name) != two.get(name)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    before = f"{prefix}." if prefix else ""
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{before}{key}").items()}


def _history(sides: Sequence[Side]) -> dict[str, Any]:
    """The first step that both have logged and on whose loss or gradient norm they do not agree."""
    first, second = (_losses(side) for side in sides)
    both = sorted(first.keys() & second.keys())
    differing = next((step for step in both if first[step] != second[step]), None)
    agreed = [step for step in both if differing is None or step < differing]
    found: dict[str, Any] = {"logged_by_both": len(both), "equal_up_to_step": agreed[-1] if agreed else None}
    if differing is None:
        return {**found, "first_difference": None}
    pairs = {name: [first[differing][n], second[differing][n]] for n, name in enumerate(("loss", "gradient_norm"))}
    return {**found, "first_difference": {"step": differing, **pairs}}


def _losses(side: Side) -> dict[int, tuple[Any, Any]]:
    """Step -> loss and gradient norm, for the steps that led to a checkpoint and were logged."""
    checkpoints, line = side.checkpoints, history.lineage(side.checkpoints.records, side.record)
    events = past_events(checkpoints.objects, line, side.record)
    return {e["step"]: (e.get("loss"), e.get("gradient_norm")) for e in events if e["event"] == "step"}
