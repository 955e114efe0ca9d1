"""What the tests of checkpoints share: a store whose verbs can be replaced, and small checkpoints in it."""

from job.checkpoint import history
from job.checkpoint.log import CommitLog
from job.checkpoint.store import Checkpoint, CheckpointStore


class Wrapped:
    """A store whose verbs can be replaced one by one; all others go through."""

    def __init__(self, inner, **verbs):
        self._inner = inner
        for name, verb in verbs.items():
            setattr(self, name, verb)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def claimed(objects, **options):
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({}, **options)
    return checkpoints


def checkpoint_at(step, val_loss=None, content=b"weights"):
    return Checkpoint(
        step=step,
        files={"model.safetensors": [content, str(step).encode()], "state.json": [b"{}"]},
        events=b"",
        facts={"chain": f"{step:064x}", "eval": {"val_loss": val_loss}},
    )


def standing(objects):
    log = CommitLog(objects)
    log.refresh()
    return [record.step for record in history.checkpoints(log.records)]
