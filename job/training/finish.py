"""What is left to do once the last step is saved: the test split, the export, the report, the record of completion.

Each part can be done again; the record comes last, so a finish that was cut is simply repeated.
"""

from pathlib import Path

import structlog

from job.checkpoint import history
from job.checkpoint.files import MODEL
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.errors import JobError
from job.infra.object_store import ObjectStore
from job.model.gpt import GPT
from job.training.evaluation import SplitLoss
from job.training.export import export
from job.training.handout import hand_out_model
from job.training.resume import load_newest
from job.training.tensors import StoredTensors, require_model
from job.training.trainer import Trainer

log = structlog.get_logger(__name__)


def finish(trainer: Trainer, checkpoints: CheckpointStore) -> Record | None:
    """Test and export the best checkpoint, draw the report, and write the record of completion: that of rank 0."""
    trainer.narrator.phase("finishing")
    best = take_best(trainer, checkpoints)
    tested = measure_test(trainer, best)
    model = trainer.learner.parallel.whole(trainer.learner.model)
    if not checkpoints.ranks.leads:
        return None
    publish_export(trainer, best, model, checkpoints.objects)
    trainer.narrator.ended(0, "complete")
    trainer.narrator.publish(checkpoints)
    trainer.narrator.publish_report(checkpoints.objects)
    last, state = checkpoints.last, trainer.state
    assert last is not None  # take_best would have raised
    record = checkpoints.complete(
        {
            "step": state.step,
            "checkpoint_seq": last.seq,
            "tokens": state.step * trainer.config.tokens_per_step,
            "seconds": state.seconds,
            "train_loss": state.eval_train_loss,
            "val_loss": state.val_loss,
            "test_loss": tested.loss if tested else None,
            "chain": state.chain,
            "reason": "steps" if trainer.timetable.end == state.step else "seconds",
        }
    )
    trainer.narrator.completed(tested)
    return record


def take_best(trainer: Trainer, checkpoints: CheckpointStore) -> Record:
    """The best checkpoint that can be read, whose parameters are the learner's from here on; else the last.

    What the learner had is saved, and not needed any more.
    """
    best, last = history.best(checkpoints.records), checkpoints.last
    if last is None:
        raise RuntimeError("a run is finished only after its last step was saved")
    if not checkpoints.ranks.led(lambda: best is not None and best.seq != last.seq):
        return last

    def load(folder: Path, _: Record) -> None:
        stored = StoredTensors(folder, MODEL)
        require_model(stored, trainer.learner.model)
        hand_out_model(trainer.learner, stored)

    if checkpoints.ranks.leads:
        candidates = [record for record in (best, last) if record]
        return load_newest(checkpoints, candidates, load, {MODEL}).record
    hand_out_model(trainer.learner, None)
    return last


def measure_test(trainer: Trainer, record: Record) -> SplitLoss | None:
    """The loss of that checkpoint on the test split; None when the run has no such split."""
    if "test" not in trainer.evaluator.sets:
        return None
    measured = trainer.evaluator.measure(trainer.learner.model, "test")
    trainer.narrator.tested(record.step, measured)
    return measured


def publish_export(trainer: Trainer, record: Record, model: GPT, objects: ObjectStore) -> None:
    """Write `export/<step>/` of that checkpoint; one that cannot be written can be made again by command."""
    folder = f"export/{record.step}"
    try:
        export(objects, folder, model, trainer.text.tokenizer, trainer.config, record.facts)
    except (JobError, OSError, ValueError, RuntimeError, MemoryError) as error:
        again = f"gpt-job weights export --run {objects.uri} --checkpoint {record.step} --to FOLDER"
        log.warning("not exported", error=str(error), by_hand=again)
