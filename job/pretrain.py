"""The run, top to bottom: builds every object, connects them, starts the trainer, and finishes what it leaves."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from job.checkpoint import history
from job.checkpoint.events import VIEW, EventLog, past_events
from job.checkpoint.identity import changed_settings, ends_equality, require_same, run_identity
from job.checkpoint.probe import probe
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.config import Config, identity, identity_digest, plain
from job.config_file import ResolvedConfig, default_run_uri
from job.data.tokenizer_files import save_trained
from job.errors import AccessError, FencedError, Interrupted, JobError, NotFoundError, StorageError
from job.infra.counted_store import CountedStore
from job.infra.device import Numerics, changes, gpu_name, gpu_use, memory_errors
from job.infra.environment import code_facts, machine_facts, owner_facts, process_seconds
from job.infra.health import HealthServer, Pulse
from job.infra.metrics import Metrics, Phase
from job.infra.progress import Progress
from job.infra.ranks import ALONE, Ranks
from job.infra.shared_stop import SharedStop
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from job.infra.storage import open_compile_cache, open_store
from job.infra.summary import longer
from job.report.tensorboard import FOLDER as TENSORBOARD
from job.report.tensorboard import TensorBoard, require_tensorboard
from job.training.finetuning import known_of, stored_tokenizer, take_over
from job.training.finish import finish
from job.training.learner import Learner, build_learner
from job.training.narrator import Channels, Narrator
from job.training.numerics import compiled_code, settle_numerics
from job.training.reporter import Reporter
from job.training.restoring import restore_newest
from job.training.resume import Loaded, lost_everything, nothing_valid
from job.training.room import Room
from job.training.saver import Saver
from job.training.state import TrainingState
from job.training.text import Text, read_text
from job.training.timetable import Timetable, total_steps
from job.training.trainer import Trainer
from job.uris import local_folder

log = structlog.get_logger(__name__)
_SOURCES = 50  # files of a corpus that the event log names
_PATIENCE = 10.0  # seconds for the page where several processes end with an error: the others do not wait much longer


def pretrain(
    resolved: ResolvedConfig,
    stop: StopSignal,
    progress: Progress,
    status: RunStatus,
    *,
    restart_from_scratch: bool = False,
    single_writer_unsafe: bool = False,
    ranks: Ranks = ALONE,
) -> None:
    """Run, or continue, the run that the config describes; `status` says how far it came.

    Of several ranks each comes here. All do the same, and what only one may do (read the log, claim the run, speak,
    finish it), rank 0 does for all.

    Raises:
        JobError: Every deliberate end but completion; the class says which.
    """
    config = resolved.config
    if config.observe.tensorboard:
        require_tensorboard()
    status.run_uri, status.longer = config.run_uri, longer(config.training)
    metrics, pulse = Metrics(CollectorRegistry()), Pulse()
    channels = Channels(metrics, pulse, progress, status, heard=ranks.leads)

    def phase(name: Phase) -> None:
        metrics.phase(name)
        progress.phase(name, unit="bytes" if name in ("pulling", "tokenizing") else "")

    def advance(done: int = 0, more: int = 0, /) -> None:
        pulse.beat()
        if done or more:
            progress.advance(done, more)
        if stop.requested:
            raise Interrupted(f"{stop.reason}; {status.standing()}; start again to continue")

    with (
        _last_words(config, metrics, ranks.leads),
        memory_errors(),
        _endpoint(config, metrics, pulse, ranks.leads) as ready,
        tempfile.TemporaryDirectory(prefix="gpt-job-") as scratch,
    ):
        objects = open_store(config.run_uri, config.storage, pulse.beat, single_writer_unsafe)
        checkpoints = CheckpointStore(CountedStore(objects, metrics.count_storage_error), ranks=ranks)
        newest = _newest(checkpoints, restart_from_scratch)
        resolved = take_over(resolved, newest)
        config = resolved.config
        if newest:
            _require_same(resolved, newest, identity(config))
            if _already_complete(config, checkpoints, newest, status):
                return
            _stand_on(status, checkpoints, newest, config.tokens_per_step)
        code = compiled_code(config, open_compile_cache(config, pulse.beat))
        numerics = settle_numerics(config, newest.facts.get("numerics") if newest else None, ranks, code)
        text = read_text(config, phase, advance, stored_tokenizer(checkpoints, newest), progress)
        facts = _facts(config, text, newest)
        if newest:
            _require_same(resolved, newest, facts["identity"])
        may_delete = _claim(checkpoints, restart_from_scratch, single_writer_unsafe)
        phase("restoring")
        metrics.describe(facts["code"]["packages"], gpu_use if numerics.device == "cuda" else None)
        newest = _newest(checkpoints, restart_from_scratch)
        if newest is None and ranks.leads:
            save_trained(checkpoints.objects, text.tokenizer, config.model.context_length)
        room = Room(config, numerics, text.tokenizer.vocab_size)
        learner, loaded = _learner(room, checkpoints, config, numerics, text, restoring=newest is not None)
        timetable = Timetable(config.training, text.order.windows)
        narrator = _narrator(config, channels, checkpoints, timetable, Path(scratch))
        saver = Saver(checkpoints, config.checkpoint, narrator, may_delete, code.offer if ranks.leads else None)
        trainer = Trainer(
            config=config,
            learner=learner,
            text=text,
            timetable=timetable,
            narrator=narrator,
            saver=saver,
            checkpoints=checkpoints,
            state=loaded.value if loaded else TrainingState(),
            facts=facts,
            stop=SharedStop(stop, ranks),
        )
        with (
            _told(narrator, saver, checkpoints, config, stop),
            ranks.explaining(),
            room.explained(),
        ):
            _announce(resolved, trainer, checkpoints, loaded)
            ready()
            trainer.run()
            finish(trainer, checkpoints)
        status.status = "complete"


@contextmanager
def _told(
    narrator: Narrator, saver: Saver, checkpoints: CheckpointStore, config: Config, stop: StopSignal
) -> Iterator[None]:
    """Let the save under way end, and tell of the error, when the block ends with one."""
    try:
        yield
    except Exception as error:
        saver.close()
        narrator.ended(getattr(error, "exit_code", 1), f"{type(error).__name__}: {error}")
        kept_here = local_folder(config.run_uri) is not None
        if isinstance(error, FencedError) and kept_here:
            _give_back(narrator, checkpoints)
        unreachable = isinstance(error, StorageError | AccessError) and not kept_here
        if not unreachable and not isinstance(error, FencedError):
            narrator.publish(checkpoints)
            patience = _PATIENCE if checkpoints.ranks.place.world_size > 1 else math.inf
            narrator.publish_report(checkpoints.objects, min(stop.remaining() / 2, patience))
        raise
    finally:
        narrator.close()


@contextmanager
def _last_words(config: Config, metrics: Metrics, leads: bool) -> Iterator[None]:
    """How the attempt ends, and the last values of one that trained, go where they outlive the process.

    A new attempt first takes back what the one before said of its end. One that lost the run says nothing: the group
    belongs to the attempt that has it.
    """
    url, grouping = (
        config.observe.pushgateway_url if leads else None,
        {"job": "gpt-pretrain", "run": config.run_uri.rpartition("/")[2]},
    )
    if url:
        metrics.push(url, grouping, only_ending=True)
    try:
        yield
    except Exception as error:
        metrics.ended(getattr(error, "exit_code", 1))
        if isinstance(error, FencedError):
            url = None
        raise
    else:
        metrics.ended(0)
    finally:
        if url:
            metrics.push(url, grouping, only_ending=not metrics.training_started.known)


@contextmanager
def _endpoint(config: Config, metrics: Metrics, pulse: Pulse, leads: bool) -> Iterator[Callable[[], None]]:
    """`/metrics`, `/healthz` and `/readyz` inside the block; yields what says that training has begun."""
    observe = config.observe
    if observe.metrics_port is None or not leads:
        yield lambda: None
        return
    host, port = observe.metrics_host, observe.metrics_port
    server = HealthServer(metrics.registry, pulse, observe.stall_seconds, host, port).start()
    try:
        yield server.ready
    finally:
        server.close()


def _newest(checkpoints: CheckpointStore, restart_from_scratch: bool) -> Record | None:
    """The newest checkpoint that may be continued, as the log now says; None for a fresh run.

    Raises:
        NotFoundError: There are records, but none can be read: never silently step 0.
        FencedError: Claimed, and taken over since.
    """
    checkpoints.refresh()  # whoever claimed the run since may already be pruning what would be read
    if checkpoints.term is None and restart_from_scratch:
        return None
    if lost_everything(checkpoints) and not restart_from_scratch:
        raise NotFoundError(nothing_valid(checkpoints, []))
    return next(reversed(history.checkpoints(checkpoints.records)), None)


def _require_same(resolved: ResolvedConfig, newest: Record, asked: dict[str, Any]) -> None:
    config = resolved.config
    own_run = default_run_uri(resolved.preset, config)
    require_same(newest.facts["identity"], known_of(newest, asked), config.run_uri, own_run)


def _already_complete(config: Config, checkpoints: CheckpointStore, newest: Record, status: RunStatus) -> bool:
    """Whether the log says that everything the config asks for is done; fills `status` if so."""
    done = history.completion(checkpoints.records)
    if done is None:
        return False
    end = total_steps(config.training, newest.facts["corpus"]["windows"])
    limit = config.training.max_seconds
    if not ((end is not None and done.step >= end) or (limit is not None and done.facts["seconds"] >= limit)):
        return False
    status.status = "already complete"
    status.step, status.chain, status.tokens = done.step, done.chain, done.facts["tokens"]
    status.seconds, status.checkpoint = done.facts["seconds"], checkpoints.folder_of(newest)
    status.train_loss, status.val_loss = done.facts["train_loss"], done.facts["val_loss"]
    log.info("already complete", step=done.step, run_uri=config.run_uri)
    return True


def _stand_on(status: RunStatus, checkpoints: CheckpointStore, newest: Record, tokens_per_step: int) -> None:
    """Let an attempt that ends before it has restored anything say what the ones before it have saved."""
    status.step = status.saved_step = newest.step
    status.tokens, status.chain = newest.step * tokens_per_step, newest.chain
    status.checkpoint = checkpoints.folder_of(newest)


def _facts(config: Config, text: Text, newest: Record | None) -> dict[str, Any]:
    """What every record of this attempt says about the run."""
    imported = newest.facts.get("imported") if newest else None
    own = run_identity(config, text.corpus.fingerprint, text.tokenizer.sha256)
    return {
        "config": plain(config),
        "identity": own,
        "identity_sha256": identity_digest(own),
        "code": code_facts(),
        "tokenizer_sha256": text.tokenizer.sha256,
        "corpus": text.facts(),
        **({"imported": imported} if imported else {}),
    }


def _claim(checkpoints: CheckpointStore, reset: bool, single_writer_unsafe: bool) -> bool:
    """Make the run this attempt's; whether the store lets it delete."""
    may_delete = False
    left = history.checkpoints(checkpoints.records)
    if checkpoints.ranks.leads:
        may_delete = probe(checkpoints.objects, checkpoints.attempt, single_writer_unsafe)
        if not may_delete:
            log.warning("storage refuses deletions: retention is off and every checkpoint stays")
        checkpoints.claim({"owner": owner_facts(), "code": code_facts()}, reset)
    checkpoints.share_claim()
    if reset and left:
        _started_over(left[-1])
    return may_delete


def _started_over(left: Record) -> None:
    """Say what the run leaves behind because a person asked for it."""
    log.warning("started over from the seed: the checkpoints so far are not used again", last_step=left.step)
    if origin := left.facts.get("imported"):
        log.warning("the imported weights are left behind too; to begin with them, import into another run", **origin)


def _learner(
    room: Room, checkpoints: CheckpointStore, config: Config, numerics: Numerics, text: Text, *, restoring: bool
) -> tuple[Learner, Loaded[TrainingState] | None]:
    """What is to be trained, fresh or as the newest checkpoint that is whole has it."""
    with room.explained():
        learner = build_learner(config, numerics, text.tokenizer.vocab_size, restoring, checkpoints.ranks)
        return learner, _restore(checkpoints, learner) if restoring else None


def _restore(checkpoints: CheckpointStore, learner: Learner) -> Loaded[TrainingState]:
    """The state of the newest checkpoint that is whole, with the learner's tensors put in place."""
    candidates = history.checkpoints(checkpoints.records)[::-1]
    try:
        loaded = restore_newest(checkpoints, candidates, learner)
    except NotFoundError:
        checkpoints.assert_owner()  # not damaged, if a newer attempt has pruned them meanwhile
        raise
    checkpoints.continue_from(loaded.record)
    return loaded


def _narrator(
    config: Config, channels: Channels, checkpoints: CheckpointStore, timetable: Timetable, scratch: Path
) -> Narrator:
    """Who tells of the run, with its history so far; that lies under the run's address where it is a folder."""
    leads = checkpoints.ranks.leads
    folder = local_folder(config.run_uri) if leads else None
    past = checkpoints.ranks.led(lambda: past_events(checkpoints.objects, checkpoints.records, checkpoints.last))
    events = EventLog((folder or scratch) / VIEW, past, checkpoints.term or 0)
    reporter = Reporter(events.path, config.run_uri, scratch) if config.observe.report and leads else None
    board = TensorBoard((folder or scratch) / TENSORBOARD) if config.observe.tensorboard and leads else None
    tokens, kept_here = config.tokens_per_step, folder is not None
    return Narrator(channels, events, timetable, tokens, kept_here, reporter=reporter, board=board)


def _give_back(narrator: Narrator, checkpoints: CheckpointStore) -> None:
    """Make `events.jsonl` what the log says by now: this attempt, which lost the run, may have replaced it."""
    with suppress(JobError):
        checkpoints.log.refresh()
        newest = next(reversed(history.checkpoints(checkpoints.records)), None)
        narrator.events.rewind(past_events(checkpoints.objects, checkpoints.records, newest))


def _announce(
    resolved: ResolvedConfig, trainer: Trainer, checkpoints: CheckpointStore, loaded: Loaded[TrainingState] | None
) -> None:
    """Say what this attempt starts from, what was passed over and what will not be the same as before."""
    for record, reason in loaded.rejected if loaded else ():
        trainer.narrator.rejected(record.step, reason.reason, str(reason))
    if loaded and not history.is_starting_point(loaded.record):
        _compare(trainer, loaded.record)
    trainer.narrator.status.prompt = trainer.text.tokenizer.decode(trainer.sampler.prompt)
    trainer.narrator.resumed_with(trainer.state.eval_train_loss, trainer.state.val_loss, trainer.state.seconds)
    trainer.narrator.started(
        trainer.state.step,
        _environment(trainer),
        run_uri=resolved.config.run_uri,
        preset=resolved.preset,
        parameters=trainer.learner.model.parameter_count,
        device=trainer.learner.numerics.device,
        precision=trainer.learner.numerics.precision,
        compiled=trainer.learner.numerics.compile,
        threads=trainer.learner.numerics.threads,
        **_spread(trainer.learner.numerics),
        end=trainer.timetable.end,
        attempt=sum(r.kind == "fence" and not r.facts.get("maintenance") for r in checkpoints.records),
    )
    trainer.narrator.publish(checkpoints)


def _environment(trainer: Trainer) -> dict[str, Any]:
    """What the event log says of an attempt's surroundings, so that a report needs nothing else."""
    facts, numerics = trainer.facts, trainer.learner.numerics
    corpus: dict[str, Any] = facts["corpus"]  # type: ignore[assignment]  # as _facts has made it
    spent = trainer.narrator.metrics.phase_seconds()
    spent["importing"] = max(0.0, process_seconds() - sum(spent.values()))
    return {
        "config": facts["config"],
        "code": facts["code"],
        "corpus": {**corpus, "files": corpus["files"][:_SOURCES], "file_count": len(corpus["files"])},
        "tokenizer_sha256": facts["tokenizer_sha256"],
        "numerics": numerics.plain(),
        "machine": machine_facts(gpu_name() if numerics.device == "cuda" else None),
        "startup": {name: round(seconds, 3) for name, seconds in spent.items()},
    }


def _spread(numerics: Numerics) -> dict[str, Any]:
    return {"processes": numerics.world_size, "parallel": numerics.parallel} if numerics.world_size > 1 else {}


def _compare(trainer: Trainer, record: Record) -> None:
    """Say which settings and numerics are not those of the checkpoint, and mark what ends equality bit for bit."""
    settings = changed_settings(record.facts["config"], plain(trainer.config))
    if settings:
        log.info("settings changed since the checkpoint", **{name: list(pair) for name, pair in settings.items()})
    unequal = changes(trainer.learner.numerics, record.facts["numerics"]) + ends_equality(settings, trainer.config)
    for change in unequal:
        log.warning("numbers will differ from those of an unbroken run", change=change)
    if unequal:
        trainer.facts["numerics_changed"] = unequal
