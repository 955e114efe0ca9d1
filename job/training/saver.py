"""Saving as the loop sees it: a checkpoint goes in, and the run goes on unless too many in a row were lost."""

import time
from collections.abc import Callable

from job.checkpoint.record import Record
from job.checkpoint.retention import Retention
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.config import CheckpointConfig
from job.errors import AccessError, FencedError, StorageError
from job.training.narrator import Narrator

_HASTE = 1.25  # a save may take this much longer than the last one did


class Saver:
    """Commits checkpoints one at a time and prunes old ones after each.

    Args:
        checkpoints: The claimed store.
        config: Periods, retention, how many failures are borne.
        narrator: Told of everything that happens.
        may_delete: False when the store refuses deletions: retention is off.
    """

    def __init__(
        self, checkpoints: CheckpointStore, config: CheckpointConfig, narrator: Narrator, may_delete: bool = True
    ) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._narrator = narrator
        self._retention = Retention(checkpoints, config) if may_delete else None
        self._failures = 0
        self._last_seconds = 0.0
        self.last_step: int | None = None
        if checkpoints.last:
            self._stand_on(checkpoints.last)
        self.last_time = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the config wants a checkpoint now."""
        seconds = self._config.every_seconds
        return step % self._config.every == 0 or (seconds is not None and time.monotonic() - self.last_time >= seconds)

    def fits(self, seconds: float) -> bool:
        """Whether a save, if it is no slower than the last one, ends within `seconds`."""
        return seconds > 0 and _HASTE * self._last_seconds < seconds

    def save(self, step: int, make: Callable[[], Checkpoint]) -> bool:
        """Commit the checkpoint that `make` takes; False when this one was lost.

        Raises:
            FencedError: A newer attempt owns the run.
            StorageError: `checkpoint.max_failures` saves in a row were lost.
        """
        started = time.monotonic()
        self._narrator.saving(step)
        try:
            checkpoint = make()
            taken = time.monotonic()
            saved = self._checkpoints.save(checkpoint)
        except (StorageError, AccessError, OSError, MemoryError) as error:
            self._lost(step, error)
            return False
        finally:
            self.last_time = time.monotonic()
        self._failures = 0
        self._stand_on(saved.record)
        total = time.monotonic() - started
        self._last_seconds = total
        self._narrator.saved(saved.record, {"snapshot": taken - started, **saved.seconds, "total": total})
        self._prune()
        self._narrator.publish(self._checkpoints)
        return True

    def _stand_on(self, record: Record) -> None:
        self.last_step = record.step
        self._narrator.stands_on(record, self._checkpoints.folder_of(record))

    def _lost(self, step: int, error: Exception) -> None:
        self._failures += 1
        self._narrator.save_failed(step, error, self._failures)
        if self._failures >= self._config.max_failures:
            raise StorageError(
                f"{self._failures} saves in a row were lost, the last at step {step}: {error}; "
                f"{self._narrator.status.standing()}"
            ) from error

    def _prune(self) -> None:
        if self._retention is None:
            return
        try:
            self._narrator.pruned(self._retention.run())
        except FencedError:
            raise
        except (StorageError, AccessError) as error:
            self._narrator.pruning_failed(error)
