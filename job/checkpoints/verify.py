"""The `checkpoints verify` command: every byte of a run that a resume could need, read again and compared."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from job.checkpoint import history
from job.checkpoint.audit import Problem, log_problems
from job.checkpoint.choice import choose, open_run
from job.checkpoint.events import facts_key, parse_lines
from job.checkpoint.files import STATE, TOKENIZER
from job.checkpoint.record import FORMAT, Record, StoredObject, log_key, term_of
from job.checkpoint.store import RUN_KEY, CheckpointStore
from job.checkpoint.verify import settled_sha256
from job.config import Config
from job.data.order import DataOffset, passed_over
from job.infra.object_store import ObjectStore
from job.infra.storage import open_store
from job.tensor_file import DamagedTensors, read_contents

log = structlog.get_logger(__name__)
_HINT = "latest.json"  # for people: never read by a resume, but it remembers the log's end


def verify_run(config: Config, which: str | None = None) -> dict[str, Any]:
    """All that is wrong with a run, and what lies about in it.

    One object at a time is copied to the temporary folder, hashed on the way, looked into and removed again.

    Args:
        config: Where the run is.
        which: The one checkpoint to read back: best, last or a step; unset: every one that stands.

    Raises:
        NotFoundError: There is no run, or no such checkpoint.
    """
    objects = open_store(config.run_uri, config.storage)
    hinted = _hinted(objects)
    checkpoints = open_run(objects)
    chosen = history.checkpoints(checkpoints.records) if which is None else choose(checkpoints, which)[:1]
    rows = [_row(record, problems) for record, problems in verified(checkpoints, chosen)]
    past = _past(checkpoints.records, chosen)
    of_past = [problem for record in past for problem in _check_events(objects, record)]
    of_run = _check_run(objects)
    of_log = log_problems(checkpoints.records, checkpoints.log.damaged) + _check_end(checkpoints, hinted)
    return {
        "run_uri": config.run_uri,
        "valid": not (of_run or of_log or of_past) and all(row["valid"] for row in rows),
        "run": {"problems": _plain(of_run)},
        "log": {"records": len(checkpoints.records), "problems": _plain(of_log)},
        "history": {"segments": len(past), "problems": _plain(of_past)},
        "checkpoints": rows,
        "leftovers": leftovers(checkpoints),
    }


def _row(record: Record, problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "seq": record.seq,
        "step": record.step,
        "chain": record.chain,
        "bytes": record.size,
        "valid": not problems,
        "problems": _plain(problems),
    }


def _plain(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [problem.plain() for problem in problems]


def verified(checkpoints: CheckpointStore, chosen: Sequence[Record]) -> Iterator[tuple[Record, list[Problem]]]:
    """Each checkpoint with what is wrong with it; one that a job prunes in the meantime is left out."""
    for record in chosen:
        problems = check_checkpoint(checkpoints.objects, record)
        if problems:
            checkpoints.log.refresh()
            if record not in history.checkpoints(checkpoints.records):
                log.info("checkpoint pruned while it was verified", seq=record.seq, step=record.step)
                continue
        log.info("checkpoint verified", seq=record.seq, step=record.step, bytes=record.size, valid=not problems)
        yield record, problems


def check_checkpoint(objects: ObjectStore, record: Record) -> list[Problem]:
    """What is wrong with the objects of a checkpoint and with its events."""

    def check(stored: StoredObject, path: Path) -> list[Problem]:
        if stored.name == STATE:
            return _check_state(path, record)
        return _check_tensors(path) if stored.name.endswith(".safetensors") else []

    problems = [
        problem for stored in record.objects for problem in _check_object(objects, stored, partial(check, stored))
    ]
    return [*problems, *_check_names(record), *_check_events(objects, record)]


def _check_names(record: Record) -> list[Problem]:
    """What a checkpoint consists of: a model, state and the tokenizer that the record says."""
    hashes = {stored.name: stored.sha256 for stored in record.objects}
    wanted = {"model*.safetensors": any(name.startswith("model") for name in hashes)}
    wanted |= {name: name in hashes for name in (STATE, TOKENIZER)}
    found = [Problem("objects", log_key(record.seq), name, "none") for name, there in wanted.items() if not there]
    tokenizer = record.facts["tokenizer_sha256"]
    if hashes.get(TOKENIZER, tokenizer) != tokenizer:
        found.append(Problem("tokenizer_sha256", log_key(record.seq), tokenizer, hashes[TOKENIZER]))
    return found


def _check_object(objects: ObjectStore, stored: StoredObject, check: Callable[[Path], list[Problem]]) -> list[Problem]:
    """Size, then hash, then what `check` finds in the bytes; the first that is wrong explains the rest."""
    try:
        if (size := objects.size(stored.key)) != stored.size:
            return [Problem("size", stored.key, stored.size, size)]
        with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
            path = Path(folder) / "object"
            sha256 = settled_sha256(stored, partial(objects.get, stored.key, path))
            if sha256 != stored.sha256:
                return [Problem("sha256", stored.key, stored.sha256, sha256)]
            return [Problem(found.what, stored.key, found.expected, found.got) for found in check(path)]
    except KeyError:
        return [Problem("missing", stored.key, f"{stored.size} bytes", "nothing")]


def _check_tensors(path: Path) -> list[Problem]:
    try:
        read_contents(path)
    except DamagedTensors as error:
        return [Problem("safetensors", "", "tensors that fill the file one after the other", str(error))]
    return []


def _check_state(path: Path, record: Record) -> list[Problem]:
    try:
        state = json.loads(path.read_bytes())
        offsets = [DataOffset(**offset) for offset in state["data_offsets"]]
        data_offset = passed_over(state["step"], offsets)
        got = {"step": state["step"], "chain": state["chain"], "data_offset": data_offset}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [Problem("state", "", "a JSON object with step, chain and data_offsets", f"{error!r}")]
    return [
        Problem(name, "", record.facts.get(name), value)
        for name, value in got.items()
        if value != record.facts.get(name)
    ]


def _check_events(objects: ObjectStore, record: Record) -> list[Problem]:
    """What is wrong with the events that a checkpoint carries."""

    def check(path: Path) -> list[Problem]:
        content = path.read_bytes()
        events = parse_lines(content)
        if len(events) != len(content.splitlines()):
            return [Problem("events", "", f"{len(content.splitlines())} events", f"{len(events)}")]
        late = [event["step"] for event in events if event["step"] > record.step]
        return [Problem("events", "", f"steps up to {record.step}", f"step {late[0]}")] if late else []

    return _check_object(objects, StoredObject(**record.facts["events"]), check)


def _past(records: Sequence[Record], chosen: Sequence[Record]) -> list[Record]:
    """Checkpoints that are gone and led to those that are not: their events are part of the history still."""
    lines = {record.seq: record for last in chosen for record in history.lineage(records, last)}
    return [record for seq, record in sorted(lines.items()) if record not in chosen]


def _check_run(objects: ObjectStore) -> list[Problem]:
    try:
        found = json.loads(objects.read(RUN_KEY))
        got = found.get("format")
    except KeyError:
        return [Problem("missing", RUN_KEY, "the run's format and id", "nothing")]
    except (ValueError, AttributeError, RecursionError) as error:
        return [Problem("run", RUN_KEY, "a JSON object", str(error))]
    return [] if got == FORMAT else [Problem("format", RUN_KEY, FORMAT, got)]


def _hinted(objects: ObjectStore) -> int:
    """The record that people are told is the newest checkpoint; 0 when they are told nothing."""
    try:
        return int(json.loads(objects.read(_HINT))["seq"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return 0


def _check_end(checkpoints: CheckpointStore, hinted: int) -> list[Problem]:
    """Records lost from the end of a log leave no gap; the hint for people may know of them."""
    known = [*(record.seq for record in checkpoints.records), *checkpoints.log.damaged]
    if hinted <= max(known, default=0):
        return []
    return [Problem("missing", log_key(hinted), f"the record that {_HINT} names", "nothing")]


def leftovers(checkpoints: CheckpointStore) -> list[str]:
    """Objects of earlier attempts that no record which can be read names: cut saves, cut deletions. No damage."""
    records = checkpoints.records
    named = {facts_key(record.attempt, record.term) for record in records if record.kind == "fence"}
    named |= {StoredObject(**record.facts["events"]).key for record in records if record.kind == "checkpoint"}
    named |= {stored.key for record in history.unpruned(records) for stored in record.objects}
    keys = [key for prefix in ("data/", "events/") for key in checkpoints.objects.keys(prefix)]
    highest = history.highest_term(records)
    return [key for key in keys if key not in named and (term := term_of(key)) is not None and term < highest]
