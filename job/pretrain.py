"""The run, top to bottom: builds every object, connects them, starts the trainer, and finishes what it leaves."""

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
from job.data.cache import cache_folder
from job.errors import AccessError, FencedError, Interrupted, JobError, NotFoundError, StorageError
from job.infra.allocator import keep_freed_memory
from job.infra.compiler import settle_compiling
from job.infra.device import changes, choose_numerics, gpu_use, memory_errors
from job.infra.environment import code_facts, owner_facts
from job.infra.health import HealthServer, Pulse
from job.infra.metrics import Metrics
from job.infra.progress import Progress
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from job.infra.storage import local_folder, open_store
from job.training.finetuning import is_starting_point, known_of, stored_tokenizer, take_over
from job.training.finish import finish
from job.training.learner import Learner, build_learner
from job.training.memory import memory_explained
from job.training.narrator import Channels, Narrator
from job.training.precision import cpu_precision
from job.training.resume import Loaded, load_newest, lost_everything, nothing_valid
from job.training.saver import Saver
from job.training.state import TrainingState, restore
from job.training.text import Text, read_text
from job.training.timetable import Timetable, total_steps
from job.training.trainer import Trainer

log = structlog.get_logger(__name__)


def pretrain(
    resolved: ResolvedConfig,
    stop: StopSignal,
    progress: Progress,
    status: RunStatus,
    *,
    restart_from_scratch: bool = False,
    single_writer_unsafe: bool = False,
) -> None:
    """Run, or continue, the run that the config describes; `status` says how far it came.

    Raises:
        JobError: Every deliberate end but completion; the class says which.
    """
    config = resolved.config
    status.run_uri = config.run_uri
    metrics, pulse = Metrics(CollectorRegistry()), Pulse()
    channels = Channels(metrics, pulse, progress, status)

    def advance() -> None:
        pulse.beat()
        if stop.requested:
            raise Interrupted(f"{stop.reason}; {status.standing()}; start again to continue")

    with (
        memory_errors(),
        _endpoint(config, metrics, pulse) as ready,
        tempfile.TemporaryDirectory(prefix="gpt-job-") as scratch,
    ):
        checkpoints = CheckpointStore(open_store(config.run_uri, config.storage, pulse.beat, single_writer_unsafe))
        newest = _newest(checkpoints, restart_from_scratch)
        resolved = take_over(resolved, newest)
        config = resolved.config
        if newest:
            _require_same(resolved, newest, identity(config))
            if _already_complete(config, checkpoints, newest, status):
                return
            _stand_on(status, checkpoints, newest, config.tokens_per_step)
        text = read_text(config, metrics.phase, advance, stored_tokenizer(checkpoints, newest))
        facts = _facts(config, text, newest)
        if newest:
            _require_same(resolved, newest, facts["identity"])
        stored = newest.facts.get("numerics") if newest else None
        numerics = choose_numerics(config.runtime, stored, cpu_precision=cpu_precision(config.model))
        numerics = settle_compiling(numerics, config.runtime, cache_folder(config.data))
        if numerics.device == "cpu":
            keep_freed_memory()
        may_delete = _claim(checkpoints, restart_from_scratch, single_writer_unsafe)
        metrics.phase("restoring")
        metrics.describe(facts["code"]["packages"], gpu_use if numerics.device == "cuda" else None)
        newest = _newest(checkpoints, restart_from_scratch)
        learner = build_learner(config, numerics, text.tokenizer.vocab_size, restoring=newest is not None)
        loaded = _restore(checkpoints, learner) if newest else None
        timetable = Timetable(config.training, text.order.windows)
        narrator = _narrator(config, channels, checkpoints, timetable, Path(scratch))
        saver = Saver(checkpoints, config.checkpoint, narrator, may_delete)
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
            stop=stop,
            advance=advance,
        )
        with _told(narrator, saver, checkpoints, config), memory_explained(learner, config):
            _announce(resolved, trainer, checkpoints, loaded)
            ready()
            trainer.run()
            finish(trainer, checkpoints)
        status.status = "complete"


@contextmanager
def _told(narrator: Narrator, saver: Saver, checkpoints: CheckpointStore, config: Config) -> Iterator[None]:
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
        raise
    finally:
        narrator.close(config.observe.pushgateway_url)


@contextmanager
def _endpoint(config: Config, metrics: Metrics, pulse: Pulse) -> Iterator[Callable[[], None]]:
    """`/metrics`, `/healthz` and `/readyz` inside the block; yields what says that training has begun."""
    observe = config.observe
    if observe.metrics_port is None:
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
    if checkpoints.term is None:
        checkpoints.log.refresh()
        if restart_from_scratch:
            return None
    else:
        checkpoints.assert_owner()  # whoever claimed the run since may already be pruning what would be read
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
    may_delete = probe(checkpoints.objects, checkpoints.attempt, single_writer_unsafe)
    if not may_delete:
        log.warning("storage refuses deletions: retention is off and every checkpoint stays")
    checkpoints.claim({"owner": owner_facts(), "code": code_facts()}, reset)
    return may_delete


def _restore(checkpoints: CheckpointStore, learner: Learner) -> Loaded[TrainingState]:
    """The state of the newest checkpoint that is whole, with the learner's tensors put in place."""
    candidates = history.checkpoints(checkpoints.records)[::-1]
    try:
        loaded = load_newest(checkpoints, candidates, lambda folder, record: restore(folder, record, learner))
    except NotFoundError:
        checkpoints.assert_owner()  # not damaged, if a newer attempt has pruned them meanwhile
        raise
    checkpoints.continue_from(loaded.record)
    return loaded


def _narrator(
    config: Config, channels: Channels, checkpoints: CheckpointStore, timetable: Timetable, scratch: Path
) -> Narrator:
    """Who tells of the run, with its history so far; that lies under the run's address where it is a folder."""
    folder = local_folder(config.run_uri)
    past = past_events(checkpoints.objects, checkpoints.records, checkpoints.last)
    events = EventLog((folder or scratch) / VIEW, past, checkpoints.term or 0)
    return Narrator(channels, events, timetable, config.tokens_per_step, folder is not None)


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
    if loaded and not is_starting_point(loaded.record):
        _compare(trainer, loaded.record)
    trainer.narrator.resumed_with(trainer.state.eval_train_loss, trainer.state.val_loss, trainer.state.seconds)
    trainer.narrator.started(
        trainer.state.step,
        run_uri=resolved.config.run_uri,
        preset=resolved.preset,
        parameters=trainer.learner.model.parameter_count,
        device=trainer.learner.numerics.device,
        precision=trainer.learner.numerics.precision,
        compiled=trainer.learner.numerics.compile,
        threads=trainer.learner.numerics.threads,
        end=trainer.timetable.end,
        attempt=sum(r.kind == "fence" and not r.facts.get("maintenance") for r in checkpoints.records),
    )
    trainer.narrator.publish(checkpoints)


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
