"""Says what happens, once, in every place where somebody looks: events, metrics, log lines and the bar.

Nothing here decides anything. What ranks other than the first say is heard by nobody.
"""

import errno
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from job.checkpoint.events import VIEW, Event, EventLog, Segment, facts_key, past_events
from job.checkpoint.record import Record, canonical
from job.checkpoint.retention import Pruned
from job.checkpoint.store import CheckpointStore
from job.errors import AccessError, DivergedError, FencedError, JobError
from job.infra.health import Pulse
from job.infra.metrics import Metrics, Phase, Split
from job.infra.object_store import ObjectStore
from job.infra.progress import Progress, short
from job.infra.status import RunStatus
from job.report.published import Published, find_published
from job.report.tensorboard import TensorBoard
from job.training.evaluation import SplitLoss
from job.training.ledger import StepResult
from job.training.reporter import Reporter
from job.training.rollback import Rollback
from job.training.timetable import Timetable

log = structlog.get_logger(__name__)
METRICS_VIEW, LATEST_VIEW, REPORT_VIEW = "metrics.prom", "latest.json", "report/report.html"


@dataclass(frozen=True, slots=True)
class Channels:
    """Where somebody looks while the job runs, and what it will say when it ends."""

    metrics: Metrics
    pulse: Pulse
    progress: Progress
    status: RunStatus
    heard: bool = True  # whether anybody looks: at those of rank 0 alone


class Narrator:
    """Everything the job has to say while it trains.

    Args:
        channels: Metrics, pulse, progress and status.
        events: The run's history.
        timetable: For epochs and how much is left.
        tokens_per_step: Training tokens of a step.
        kept_here: Whether `events.jsonl` lies under the run's address already and needs no upload.
        reporter: Draws the run's page; unset: nobody does.
        board: Writes TensorBoard's files; unset: nobody does.
    """

    def __init__(
        self,
        channels: Channels,
        events: EventLog,
        timetable: Timetable,
        tokens_per_step: int,
        kept_here: bool,
        *,
        reporter: Reporter | None = None,
        board: TensorBoard | None = None,
    ) -> None:
        self.events, self.reporter, self._board = events, reporter, board
        self._published: Sequence[Published] = ()
        self._phase: Phase | None = None
        self._facts: dict[str, str] = {}  # beside the bar
        self.metrics, self.pulse = channels.metrics, channels.pulse
        self.progress, self.status = channels.progress, channels.status
        self._heard = channels.heard
        self._timetable = timetable
        self._tokens_per_step = tokens_per_step
        self._kept_here = kept_here
        self._began = time.monotonic()
        self._useful = 0.0

    def phase(self, name: Phase, total: float | None = None, unit: str = "") -> None:
        """The job begins something else, which has `total` units; nothing new is nothing to say."""
        self.pulse.beat()
        if name == self._phase:
            return
        self._phase = name
        self.metrics.phase(name)
        if name == "done":
            return
        if name == "training":
            total, unit = self._timetable.end, "steps"
        self.progress.phase(name, total, unit)
        if name == "training":
            self.progress.update(self.status.step, more=self._facts)

    def training(self, step: int) -> None:
        """The loop is about to run from `step` on."""
        self.status.step = step
        self.phase("training")

    def saving(self, step: int) -> None:
        """The checkpoint of this step is on its way."""
        self._facts["saving"] = str(step)

    def stepped(self, step: int, seconds: float, total_seconds: float) -> None:
        """A step took so long, all of them together so long."""
        self.status.step, self.status.tokens, self.status.seconds = step, self._tokens(step), total_seconds
        self.pulse.beat()
        self.metrics.step_seconds.observe(seconds)
        self.progress.update(step)
        self.metrics.tokens.inc(self._tokens_per_step)
        self._useful += seconds

    def waited(self, seconds: float, total_seconds: float) -> None:
        """What steps came to took so long to come; on a GPU that is the steps themselves."""
        self.status.seconds = total_seconds
        self._useful += seconds

    def logged(self, result: StepResult, rate: float, tokens_per_second: float, mfu: float | None) -> None:
        """The result of a step that the config wants to see."""
        self._record(
            "step",
            result.step,
            tokens=self._tokens(result.step),
            epoch=self._epoch(result.step),
            loss=result.loss,
            learning_rate=rate,
            gradient_norm=result.gradient_norm,
            tokens_per_second=round(tokens_per_second, 1),
            mfu=mfu,
        )
        metrics = self.metrics
        metrics.step.set(result.step)
        metrics.learning_rate.set(rate)
        metrics.gradient_norm.set(result.gradient_norm)
        metrics.tokens_per_second.set(tokens_per_second)
        metrics.goodput.set(self._useful / max(1e-9, time.monotonic() - self._began))
        if mfu is not None:
            metrics.mfu.set(mfu)
        if self._timetable.end:
            metrics.progress.set(result.step / self._timetable.end)
            left = (self._timetable.end - result.step) * self._tokens_per_step
            seconds_left = left / max(1e-9, tokens_per_second)
            metrics.eta_seconds.set(seconds_left)
            if self.reporter:
                self.reporter.make_ready(seconds_left)
        if gpu := self.metrics.gpu_memory():
            self._facts["gpu"] = f"{short(gpu)}B"
        self.progress.update(result.step, loss=result.loss, tokens_per_second=tokens_per_second, more=self._facts)
        log.debug("step", step=result.step, loss=round(result.loss, 4), tokens_per_second=round(tokens_per_second))

    def skipped(self, result: StepResult, in_a_row: int) -> None:
        """A step whose loss or gradients were not finite: its update was not made."""
        self.metrics.nonfinite_steps.inc()
        self._record(
            "step skipped", result.step, loss=result.loss, gradient_norm=result.gradient_norm, in_a_row=in_a_row
        )
        log.warning(
            "step skipped: not finite",
            step=result.step,
            loss=result.loss,
            gradient_norm=result.gradient_norm,
            in_a_row=in_a_row,
        )

    def evaluated(self, step: int, losses: Mapping[Split, SplitLoss], seconds: float) -> None:
        """The losses of the splits at a step."""
        train, validation = losses.get("train"), losses.get("validation")
        shown = validation or train
        self._record(
            "evaluated",
            step,
            tokens=self._tokens(step),
            epoch=self._epoch(step),
            train_loss=train.loss if train else None,
            val_loss=validation.loss if validation else None,
            perplexity=shown.perplexity if shown else None,
            bits_per_byte=shown.bits_per_byte if shown else None,
            seconds=round(seconds, 3),
        )
        self._measure(losses)
        self.status.train_loss = train.loss if train else None
        self.status.val_loss = validation.loss if validation else None
        line: dict[str, Any] = {f"{split}_loss": round(measured.loss, 4) for split, measured in losses.items()}
        line["perplexity"] = round(shown.perplexity, 2) if shown else None
        for known in self._published:
            if (value := known.at(step)) is not None:
                line.setdefault(known.name, value)
        log.info("evaluated", step=step, **line)

    def tested(self, step: int, measured: SplitLoss) -> None:
        """The test split, once, at the end, with the best checkpoint."""
        self._measure({"test": measured})
        self._show(self.events.note("tested", step, **measured.plain()))
        log.info("best checkpoint tested", step=step, test_loss=round(measured.loss, 4))

    def _measure(self, losses: Mapping[Split, SplitLoss]) -> None:
        for split, measured in losses.items():
            self.metrics.evaluated(split, measured.loss, measured.bits_per_byte)

    def sampled(self, step: int, prompt: str, text: str, seconds: float) -> None:
        """A sample of the model's own text, drawn in so many seconds."""
        self._record("sampled", step, prompt=prompt, text=text, seconds=round(seconds, 3))
        log.info("sampled", step=step, text=f"{prompt}{text}\n")

    def rolled_back(self, last_bad: int, rollback: Rollback, checkpoints: CheckpointStore) -> None:
        """Too many steps in a row were not finite: the run is back at an earlier one."""
        state, offset = rollback.state, rollback.offset
        self.events.rewind(past_events(checkpoints.objects, checkpoints.records, rollback.record))
        if self._board:
            self._board.begin(state.step + 1)
        self.metrics.rollbacks.inc()
        self.status.step, self.status.tokens = state.step, self._tokens(state.step)
        self.progress.update(state.step)
        facts = {
            "continued_from": state.step,
            "skipping_from": offset.step,
            "samples_passed_over": offset.samples,
            "rollbacks": len(state.data_offsets),
        }
        self.events.note("rolled back", last_bad, **facts)
        log.warning("rolled back: too many steps in a row were not finite", step=last_bad, **facts)

    def stands_on(self, record: Record | None, address: str | None) -> None:
        """This checkpoint is the one that a restart would continue from."""
        self.status.checkpoint = address
        self.status.chain, self.status.saved_step = (record.chain, record.step) if record else (None, None)
        self._facts.pop("saving", None)
        if record:
            self._facts["saved"] = str(record.step)

    def saved(self, record: Record, seconds: Mapping[str, float], segment: Segment) -> None:
        """A checkpoint is committed, and with it a segment of the events."""
        self.events.committed(segment)
        rounded = {stage: round(span, 4) for stage, span in seconds.items()}
        self.events.note("checkpoint saved", record.step, seq=record.seq, bytes=record.size, seconds=rounded)
        self.metrics.saved(seconds, record.size, time.time())  # type: ignore[arg-type]  # stages are its own
        log.info(
            "checkpoint saved",
            step=record.step,
            bytes=record.size,
            seconds=rounded["total"],
            training_stalled=rounded["snapshot"],
            chain=record.chain[:12],
        )

    def save_skipped(self, step: int, under_way: int) -> None:
        """A checkpoint was due while the one before was still being stored."""
        self.metrics.count_failure("busy")
        self.events.note("checkpoint skipped", step, reason="busy", under_way=under_way)
        log.warning("checkpoint skipped: the one before is still being stored", step=step, under_way=under_way)

    def save_failed(self, step: int, error: Exception, in_a_row: int) -> None:
        """A save was lost; the checkpoint before it stands."""
        reason = _reason(error)
        self._facts.pop("saving", None)
        self.metrics.count_failure(reason)
        self.events.note("checkpoint failed", step, reason=reason, in_a_row=in_a_row)
        log.warning(
            "checkpoint lost, the one before it stands, training goes on",
            step=step,
            reason=reason,
            in_a_row=in_a_row,
            error=str(error),
        )

    def rejected(self, step: int, reason: str, detail: str) -> None:
        """A checkpoint turned out damaged and is passed over."""
        self.metrics.count_rejected(reason)
        self.events.note("checkpoint rejected", step, reason=reason, detail=detail)
        log.warning("checkpoint rejected, the one before it is tried", step=step, reason=reason, detail=detail)

    def resumed_with(self, train_loss: float | None, val_loss: float | None, seconds: float) -> None:
        """What earlier attempts measured, so that one that has nothing left to do can still say it."""
        self.status.train_loss, self.status.val_loss, self.status.seconds = train_loss, val_loss, seconds

    def started(self, step: int, environment: Mapping[str, Any], **facts: Any) -> None:
        """An attempt begins, at step 0 or where another one ended; `environment` is for the event log alone."""
        self._published = find_published(environment.get("config", {}), environment.get("corpus", {}))
        if self._board:
            self._board.begin(step + 1 if step else 0)
        self.status.step, self.status.tokens = step, self._tokens(step)
        self.metrics.tokens.inc(self._tokens(step))
        self.metrics.restarts.inc(facts["attempt"] - 1)
        self.metrics.training_started.set(time.time())
        self.events.note("run started", step, **facts, **environment)
        log.info("run started" if step == 0 else "run continued", step=step, **facts)

    def ended(self, code: int, reason: str) -> None:
        """The attempt ends, with this exit code."""
        self.phase("done")
        self.metrics.ended(code)
        if code != FencedError.exit_code:
            self.events.close()  # the next line writes the file anew: one who lost the run may have replaced it
        phases = {name: round(seconds, 3) for name, seconds in self.metrics.phase_seconds().items()}
        self.events.note("run ended", self.status.step, code=code, reason=reason, phases=phases)

    def completed(self, tested: SplitLoss | None) -> None:
        """Everything is done: what came out, and where it is."""
        status = self.status
        known = {
            "train_loss": _rounded(status.train_loss),
            "validation_loss": _rounded(status.val_loss),
            "test_loss": _rounded(tested.loss if tested else None),
            "seconds": round(status.seconds, 1),
            "checkpoint": status.checkpoint,
            "report": status.report,
        }
        log.info("complete", step=status.step, **{name: value for name, value in known.items() if value is not None})

    def pruned(self, outcome: Pruned) -> None:
        """What retention did."""
        for seq, rejected in outcome.rejected.items():
            self.metrics.count_rejected(rejected.reason)
            log.warning("checkpoint damaged, not counted on", seq=seq, reason=rejected.reason, detail=str(rejected))
        if outcome.gone:
            log.debug("checkpoints pruned", steps=[record.step for record in outcome.gone], objects=outcome.objects)

    def pruning_failed(self, error: JobError) -> None:
        """Old checkpoints could not be removed; they are kept."""
        log.warning("old checkpoints not pruned", error=str(error))

    def publish(self, checkpoints: CheckpointStore) -> None:
        """Write the views that people read; best effort, never read by a resume."""
        self.store_views(checkpoints.objects, self.views(checkpoints))

    def views(self, checkpoints: CheckpointStore) -> dict[str, bytes]:
        """The views by key, as they are now."""
        if not self._heard:
            return {}
        views = {facts_key(checkpoints.attempt, checkpoints.term or 0): self.events.facts()}
        views[METRICS_VIEW] = self.metrics.text()
        if self._board and not self._kept_here:
            views |= self._board.files()
        if last := checkpoints.last:
            hint = {"step": last.step, "seq": last.seq, "checkpoint": checkpoints.folder_of(last)}
            views[LATEST_VIEW] = canonical(hint)
        if not self._kept_here:
            views[VIEW] = self.events.view()
        return views

    def store_views(self, objects: ObjectStore, views: Mapping[str, bytes]) -> None:
        """Store the views, from whatever thread; one that cannot be stored is a warning."""
        for key, content in views.items():
            try:
                objects.put(key, [content])
            except (JobError, OSError) as error:
                log.warning("view not written", key=key, error=str(error))

    def publish_report(self, objects: ObjectStore, seconds: float = math.inf) -> None:
        """Draw and store the report as of now, if that takes no longer than `seconds`."""
        if self.reporter:
            self.progress.phase("drawing")
            if drawn := self.reporter.draw(seconds):
                self.store_views(objects, drawn)
                self.status.report = f"{objects.uri.rstrip('/')}/{REPORT_VIEW}"

    def close(self) -> None:
        """The process is about to end."""
        if self.reporter:
            self.reporter.close()
        if self._board:
            self._board.close()
        self.events.close()

    def _record(self, event: str, step: int, **fields: Any) -> None:
        self._show(self.events.record(event, step, **fields))

    def _show(self, event: Event) -> None:
        if self._board:
            self._board.add(event)

    def _tokens(self, step: int) -> int:
        return step * self._tokens_per_step

    def _epoch(self, step: int) -> float:
        return round(self._timetable.epoch(step), 6)


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _reason(error: Exception) -> str:
    """Which of the closed set of failure reasons an error belongs to."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, DivergedError):
        return "not_finite"
    return "access" if isinstance(error, AccessError) else "storage"
