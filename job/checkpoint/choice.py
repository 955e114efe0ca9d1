"""The run at an address, and which of its checkpoints a person means by best, last or a step."""

from collections.abc import Sequence

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.errors import ConfigError, NotFoundError
from job.infra.object_store import ObjectStore


def open_run(objects: ObjectStore) -> CheckpointStore:
    """The run that is kept here with its log read, for somebody who looks. NotFoundError when there is none."""
    checkpoints = CheckpointStore(objects)
    checkpoints.log.refresh()
    if not checkpoints.records and not checkpoints.log.damaged:
        raise NotFoundError(f"{objects.uri}: no run here (its log is empty)")
    return checkpoints


def choose(checkpoints: CheckpointStore, which: str) -> Sequence[Record]:
    """The records that `which` names, in order of preference. Raises NotFoundError when there is none."""
    standing = history.checkpoints(checkpoints.records)
    uri = checkpoints.objects.uri
    if not standing:
        raise NotFoundError(f"{uri}: no checkpoint here")
    if which == "last":
        return standing[::-1]
    if which == "best":
        return [history.best(checkpoints.records) or standing[-1]]
    if not which.isdigit():
        raise ConfigError(f"--checkpoint {which}: expected best, last or a step")
    named = [record for record in reversed(standing) if record.step == int(which)]
    if not named:
        steps = ", ".join(str(record.step) for record in standing)
        raise NotFoundError(f"{uri}: no checkpoint of step {which}; there are {steps}")
    return named
