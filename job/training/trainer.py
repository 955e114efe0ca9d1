"""The training loop: batch, forward, loss, backward, clip, step; look, save and stop at step boundaries."""

import time
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite

from job.checkpoint.store import CheckpointStore
from job.config import Config
from job.errors import DivergedError, Interrupted, StorageError
from job.infra.metrics import Split
from job.infra.shared_stop import SharedStop
from job.training.evaluation import Evaluator, SplitLoss
from job.training.flops import mfu
from job.training.learner import Learner
from job.training.ledger import StepLedger, StepResult
from job.training.narrator import Narrator
from job.training.randomness import seed_for, seed_torch
from job.training.rollback import data_to_pass_over, roll_back
from job.training.sampling import Sampler
from job.training.saver import Saver
from job.training.schedule import learning_rate
from job.training.snapshot import HostMemory, Snapshot, take_snapshot
from job.training.state import TrainingState
from job.training.text import Text
from job.training.timetable import Timetable

SPLITS: tuple[Split, ...] = ("train", "validation")  # measured on the way; test only at the end


class Trainer:
    """Trains a learner from a state to the end of the timetable; everything it uses is given to it.

    Args:
        config: The run.
        learner: Model and optimizer, restored to `state`.
        text: Batches, evaluation windows and the tokenizer.
        timetable: When the run ends and what is due at a step.
        narrator: Told of everything that happens.
        saver: Takes checkpoints.
        checkpoints: What the run can go back to.
        state: Where the run stands.
        facts: What every record says about the run.
        stop: Asked at every step boundary, and as evaluation moves.
    """

    def __init__(
        self,
        *,
        config: Config,
        learner: Learner,
        text: Text,
        timetable: Timetable,
        narrator: Narrator,
        saver: Saver,
        checkpoints: CheckpointStore,
        state: TrainingState,
        facts: Mapping[str, object],
        stop: SharedStop,
    ) -> None:
        training = config.training
        self.config, self.learner, self.text, self.timetable = config, learner, text, timetable
        self.narrator, self.saver, self.checkpoints, self.stop = narrator, saver, checkpoints, stop
        self.ranks = learner.parallel.ranks
        self.facts = {**facts, "numerics": learner.numerics.plain()}
        sets = text.evaluation_sets(config, training.eval_batches)
        rows = training.rows_per_pass
        self.evaluator = Evaluator(sets, learner.numerics, learner.device, rows, self.move_on, self.ranks)
        self.sampler = Sampler(training, text.tokenizer, text.prompt(config), config.seed, learner.device)
        self.memory = HostMemory(pinned=learner.device.type == "cuda")
        self.tokenizer_json = text.tokenizer.to_json()
        self.losses: dict[Split, SplitLoss] = {}
        self.looked_at = -1  # step of the last evaluation
        self.marked = (0.0, 0)  # when, and at which step, speed was last taken
        self.stand_at(state)

    def stand_at(self, state: TrainingState) -> None:
        """Make `state`, which the learner is in, the one that the next step follows."""
        self.state = state
        pin_memory = self.learner.device.type == "cuda"
        self.batches = self.text.batches(self.config, state.step, state.data_offsets, pin_memory, self.ranks.place)
        self.ledger = StepLedger(self.config.observe.log_every, state.chain, state.step)

    def run(self) -> None:
        """Train to the end; returns at once when nothing is left.

        Raises:
            Interrupted: Asked to stop; the message says what is saved and what has to be redone.
            DivergedError: Too many steps in a row were not finite, too many times.
            FencedError: A newer attempt owns the run.
            StorageError: Too many saves in a row were lost.
        """
        self.narrator.training(self.state.step)
        self.marked = (time.monotonic(), self.state.step)
        self.look()
        while not self.finished():
            if self.stop.requested:
                self.leave()
            self.train_step()
            self.stop.agree()
            self.saver.poll()
            saves = self.saver.due(self.state.step)  # asked once: by the clock it may be due a moment later
            self.settle(now=saves or self.something_is_due())
            self.look()
            if saves and not self.state.nonfinite_in_a_row and not self.finished():
                self.save()
        self.narrator.phase("saving")
        while self.saver.last_step != self.state.step:  # the last checkpoint is tried until it stands, or too often
            self.saver.wait()
            self.save()
        self.saver.wait()
        self.stop.agree()
        if self.stop.requested:
            self.leave()

    def move_on(self, done: int = 0, more: int = 0, /) -> None:
        """Show how far an evaluation is; raise Interrupted, in the middle of it, when all ranks are to stop."""
        self.narrator.pulse.beat()
        self.narrator.progress.advance(done, more)
        self.stop.agree()
        if self.stop.requested:
            raise Interrupted(f"{self.stop.reason}; {self.narrator.status.standing()}; start again to continue")

    def finished(self) -> bool:
        """Whether the run has had its steps or its time."""
        return self.timetable.finished(self.state.step, self.state.seconds)

    def train_step(self) -> None:
        """One update of the model from the next batch."""
        started = time.monotonic()
        batch = next(self.batches)
        seed_torch(self.learner.device, seed_for(self.config.seed, "step", self.state.step, self.ranks.place.rank))
        loss = self.learner.backward(batch, self.config.training.rows_per_pass, self.narrator.pulse.beat)
        norm = self.learner.update(loss, self.rate(self.state.step), self.config.optimizer.clip_norm)
        self.ledger.add(batch.samples, loss, norm)
        self.state.step += 1
        span = time.monotonic() - started
        self.spend(span)
        self.narrator.stepped(self.state.step, span, self.state.seconds)

    def spend(self, span: float) -> None:
        """Count seconds of training; where they end the run, all ranks count those of the first."""
        self.state.seconds += span
        if self.config.training.max_seconds is not None:
            self.state.seconds = self.ranks.led(lambda: self.state.seconds)

    def rate(self, step: int) -> float:
        """The learning rate of the update that follows `step` updates."""
        return learning_rate(step, self.timetable.end, self.config.optimizer)

    def something_is_due(self) -> bool:
        """Whether the state is about to be measured or left."""
        step = self.state.step
        looks = self.timetable.evaluates(step) or self.timetable.samples(step)
        return looks or self.finished() or self.stop.requested

    def settle(self, now: bool = False) -> None:
        """Read the results of the steps since the last time, where the config or the caller wants to see them."""
        every = self.config.observe.log_every
        if not (now or self.state.step % every == 0 or self.ledger.full):
            return
        started = time.monotonic()
        results = self.ledger.fold()
        span = time.monotonic() - started
        self.spend(span)
        self.narrator.waited(span, self.state.seconds)
        for result in results:
            if self.too_many_nonfinite(result):
                self.go_back(result.step)
                return
            if result.step % every == 0:
                self.log(result)
        self.state.chain = self.ledger.chain

    def too_many_nonfinite(self, result: StepResult) -> bool:
        """Count a step without an update; whether there were as many in a row as are borne."""
        overflow = self.learner.scaler.is_enabled() and isfinite(result.loss)  # fp16 is finding its scale
        if result.finite or overflow:
            self.state.nonfinite_in_a_row = 0
            return False
        self.state.nonfinite_in_a_row += 1
        self.state.nonfinite_steps += 1
        self.narrator.skipped(result, self.state.nonfinite_in_a_row)
        return self.state.nonfinite_in_a_row >= self.config.training.max_nonfinite_steps

    def go_back(self, last_bad: int) -> None:
        """Go back to before the steps that were not finite, and pass over the data that did it.

        Raises:
            DivergedError: That has been done as often as is borne.
        """
        training, in_a_row = self.config.training, self.state.nonfinite_in_a_row
        if len(self.state.data_offsets) >= training.max_rollbacks:
            raise DivergedError(
                f"loss or gradients were not finite for {in_a_row} steps in a row, up to step {last_bad}, after "
                f"{len(self.state.data_offsets)} rollbacks (training.max_rollbacks); {self.narrator.status.standing()}"
            )
        every = self.config.checkpoint.every
        offset = data_to_pass_over(last_bad - in_a_row + 1, last_bad, every, training.batch_size)
        self.saver.wait()
        self.batches.close()
        found = roll_back(self.checkpoints, self.learner, self.state, offset, self.config)
        self.stand_at(found.state)
        self.saver.stand_on(found.record)
        self.narrator.rolled_back(last_bad, found, self.checkpoints)
        self.marked = (time.monotonic(), self.state.step)

    def log(self, result: StepResult) -> None:
        """Tell of a step, with the speed since the last one that was told of."""
        now, (since, from_step) = time.monotonic(), self.marked
        self.marked = (now, result.step)
        speed = (result.step - from_step) * self.config.tokens_per_step / max(1e-9, now - since)
        share = mfu(self.learner.model, self.learner.numerics, speed)
        self.narrator.logged(result, self.rate(result.step - 1), speed, share)
        self.narrator.metrics.checkpoint_period.set(self.saver.period(self.config.tokens_per_step / max(1e-9, speed)))

    def look(self) -> None:
        """Evaluate and draw a sample when they are due; a stop signal puts them off until the resume."""
        step = self.state.step
        with suppress(Interrupted):
            if (self.timetable.evaluates(step) or self.finished()) and not self.narrator.events.has("evaluated", step):
                self.stop.check()
                self.evaluate()
            if self.timetable.samples(step) and not self.narrator.events.has("sampled", step):
                self.stop.check()
                self.sample()
        self.narrator.phase("training")

    def sample(self) -> None:
        """Let the model continue its prompt."""
        started = time.monotonic()
        self.narrator.phase("sampling")
        drawn = self.sampler.draw(self.learner.model, self.state.step)
        self.narrator.sampled(self.state.step, *drawn, seconds=time.monotonic() - started)
        self.marked = (self.marked[0] + time.monotonic() - started, self.marked[1])

    def evaluate(self) -> None:
        """Measure train and validation loss on their fixed windows."""
        started = time.monotonic()
        windows = sum(len(self.evaluator.sets[split].starts) for split in SPLITS)
        self.narrator.phase("evaluating", windows, "windows")
        losses: dict[Split, SplitLoss] = {}
        for split in SPLITS:
            losses[split] = self.evaluator.measure(self.learner.model, split)
        self.losses, self.looked_at = losses, self.state.step
        self.state.eval_train_loss, self.state.val_loss = losses["train"].loss, losses["validation"].loss
        self.narrator.evaluated(self.state.step, losses, time.monotonic() - started)
        self.marked = (self.marked[0] + time.monotonic() - started, self.marked[1])

    def save(self) -> None:
        """Begin to save the present step, unless it is saved or another save is under way."""
        started = time.monotonic()
        self.saver.begin(self.state.step, self.snapshot)
        self.marked = (self.marked[0] + time.monotonic() - started, self.marked[1])

    def snapshot(self) -> Snapshot:
        """A frozen copy of everything that a resume needs."""
        measured = self.losses if self.looked_at == self.state.step else {}
        return take_snapshot(
            self.memory,
            self.state,
            self.learner,
            tokenizer=self.tokenizer_json,
            events=self.narrator.events.segment(),
            facts={
                **self.facts,
                "tokens": self.state.step * self.config.tokens_per_step,
                "eval": {
                    "train_loss": measured["train"].loss if measured else None,
                    "val_loss": measured["validation"].loss if measured else None,
                },
            },
        )

    def leave(self) -> None:
        """Let the save under way end, save the present step if the grace allows, and say what has to be redone."""
        self.settle(now=True)  # the signal may have come after the step before had been settled
        self.narrator.phase("saving")
        with suppress(StorageError):  # asked to stop is the better reason
            self.saver.wait(self.stop.remaining())
            if self.saver.fits(self.stop.remaining()):
                self.save()
                self.saver.wait(self.stop.remaining())
        raise Interrupted(
            f"{self.stop.reason}: stopped after step {self.state.step}; {self.narrator.status.standing()}; "
            "start again to continue"
        )
