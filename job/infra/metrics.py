"""Every metric of the job, declared once; labels come from closed sets, so series never grow with time."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from typing import Literal, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest, pushadd_to_gateway
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from job.errors import JobError

Split = Literal["train", "validation", "test"]
Phase = Literal[
    "starting",
    "importing",
    "pulling",
    "tokenizing",
    "restoring",
    "training",
    "evaluating",
    "sampling",
    "saving",
    "finishing",
    "done",
]
Stage = Literal["snapshot", "serialize", "upload", "verify", "commit", "total"]

OTHER = "other"
FAILURE_REASONS = ("busy", "not_finite", "memory", "disk", "storage", "access", "stalled", OTHER)  # a save was lost
REJECTED_REASONS = ("record", "missing", "size", "sha256", "format", "shape", OTHER)
OPERATIONS = (  # the verbs of ObjectStore
    "put",
    "create",
    "get",
    "digest",
    "read",
    "size",
    "keys",
    "delete",
    "version",
    "unfinished",
    "abandon",
    OTHER,
)
ENDINGS = {0: "Complete", 1: "Unexpected", **{kind.exit_code: kind.__name__ for kind in JobError.__subclasses__()}}

STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
PUSH_SECONDS = 5.0
GPU_USE = {
    "memory_used_bytes": "GPU memory in use by this process.",
    "memory_total_bytes": "GPU memory there is.",
    "utilization_ratio": "Share of time in which the GPU computed.",
}

log = structlog.get_logger(__name__)


class Metrics:
    """What the job measures, as attributes; gauges export nothing until they are first set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._gpu: Callable[[], Mapping[str, float]] | None = None
        self._declare_training(registry)
        self._declare_run(registry)
        self._declare_checkpoints(registry)

    def _declare_training(self, registry: CollectorRegistry) -> None:
        self.step = _Gauge("pretrain_step", "Optimizer updates done.", registry=registry)
        self.tokens = Counter("pretrain_tokens_total", "Tokens trained on, over all attempts.", registry=registry)
        self.loss = Gauge("pretrain_loss_nats", "Mean cross-entropy per token.", ["split"], registry=registry)
        self.perplexity = Gauge("pretrain_perplexity", "exp(loss).", ["split"], registry=registry)
        self.bits_per_byte = Gauge("pretrain_bits_per_byte", "Loss per byte of text.", ["split"], registry=registry)
        self.learning_rate = _Gauge("pretrain_learning_rate", "Of the last step.", registry=registry)
        self.gradient_norm = _Gauge("pretrain_gradient_norm", "Of the last step, before clipping.", registry=registry)
        self.step_seconds = Histogram(
            "pretrain_step_duration_seconds", "Time of one step.", buckets=STEP_BUCKETS, registry=registry
        )
        self.tokens_per_second = _Gauge("pretrain_tokens_per_second", "Training speed, all ranks.", registry=registry)
        self.mfu = _Gauge("pretrain_mfu_ratio", "Model FLOPs used, of the device's peak.", registry=registry)
        self.nonfinite_steps = Counter(
            "pretrain_nonfinite_steps_total", "Steps skipped: loss or gradients were not finite.", registry=registry
        )
        self.rollbacks = Counter(
            "pretrain_rollbacks_total", "Returns to an earlier step: too many were skipped in a row.", registry=registry
        )

    def _declare_run(self, registry: CollectorRegistry) -> None:
        self._phase = _PhaseCollector()
        registry.register(self._phase)
        self._ending = _EndingCollector()
        registry.register(self._ending)
        self.training_started = _Gauge(
            "pretrain_training_started_timestamp_seconds", "When this attempt began to train.", registry=registry
        )
        self.progress = _Gauge("pretrain_progress_ratio", "Share of the run that is done.", registry=registry)
        self.eta_seconds = _Gauge("pretrain_eta_seconds", "Time to the end of the run.", registry=registry)
        self.goodput = _Gauge("pretrain_goodput_ratio", "Share of time spent in steps that count.", registry=registry)
        self.restarts = _Counter("pretrain_restarts_total", "Attempts after the first.", registry=registry)
        self.build_info = Info("pretrain_build", "What is running.", registry=registry)

    def _declare_checkpoints(self, registry: CollectorRegistry) -> None:
        self.checkpoint_seconds = Gauge(
            "pretrain_checkpoint_duration_seconds", "Time of the last save.", ["stage"], registry=registry
        )
        self.checkpoint_stalled = Counter(
            "pretrain_checkpoint_stalled_seconds_total", "Time that training lost to saving.", registry=registry
        )
        self.checkpoint_bytes = _Gauge("pretrain_checkpoint_bytes", "Size of the last save.", registry=registry)
        self.checkpoint_last_success = _Gauge(
            "pretrain_checkpoint_last_success_timestamp_seconds", "When a save was last committed.", registry=registry
        )
        self.checkpoint_period = _Gauge(
            "pretrain_checkpoint_period_seconds",
            "Time from one save to the next, at the speed of late.",
            registry=registry,
        )
        self._failures = Counter(
            "pretrain_checkpoint_failures_total", "Saves that were lost.", ["reason"], registry=registry
        )
        self._rejected = Counter(
            "pretrain_checkpoint_rejected_total", "Checkpoints not loaded.", ["reason"], registry=registry
        )
        self._storage_errors = Counter(
            "pretrain_storage_errors_total", "Storage calls that failed.", ["operation"], registry=registry
        )
        for counter, labels in (
            (self._failures, FAILURE_REASONS),
            (self._rejected, REJECTED_REASONS),
            (self._storage_errors, OPERATIONS),
        ):
            for label in labels:
                counter.labels(label)  # from 0, so that the first increase is seen

    def phase(self, name: Phase) -> None:
        """Say what the job is doing: one phase is 1, the others are 0."""
        self._phase.enter(name)

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that were spent in each phase so far."""
        return self._phase.seconds()

    def ended(self, code: int) -> None:
        """Say with which exit code the attempt ends; one outside ENDINGS is 1, as it is for the process."""
        self._ending.code = code if code in ENDINGS else 1

    def evaluated(self, split: Split, loss: float, bits_per_byte: float | None) -> None:
        """Set a split's loss in nats per token, its perplexity and bits per byte."""
        self.loss.labels(split).set(loss)
        self.perplexity.labels(split).set(math.exp(loss) if loss < 700 else math.inf)  # exp overflows at 710
        if bits_per_byte is not None:
            self.bits_per_byte.labels(split).set(bits_per_byte)

    def saved(self, seconds: Mapping[Stage, float], size: int, now: float) -> None:
        """Set the stages, size in bytes and Unix time of a committed save."""
        for stage, duration in seconds.items():
            self.checkpoint_seconds.labels(stage).set(duration)
        self.checkpoint_stalled.inc(seconds["snapshot"])
        self.checkpoint_bytes.set(size)
        self.checkpoint_last_success.set(now)

    def count_failure(self, reason: str) -> None:
        """Count a save that was lost; a reason outside FAILURE_REASONS is `other`."""
        self._failures.labels(_closed(reason, FAILURE_REASONS)).inc()

    def count_rejected(self, reason: str) -> None:
        """Count a checkpoint not loaded; a reason outside REJECTED_REASONS is `other`."""
        self._rejected.labels(_closed(reason, REJECTED_REASONS)).inc()

    def count_storage_error(self, operation: str) -> None:
        """Count a storage call that failed; an operation outside OPERATIONS is `other`."""
        self._storage_errors.labels(_closed(operation, OPERATIONS)).inc()

    def describe(self, packages: Mapping[str, str], gpu: Callable[[], Mapping[str, float]] | None) -> None:
        """Set the versions of what is running, and where a GPU's use is read, if there is one."""
        self.build_info.info({name.replace("-", "_"): version for name, version in packages.items()})
        if gpu is not None:
            self._gpu = gpu
            self.watch_gpu(gpu)

    def gpu_memory(self) -> float | None:
        """Bytes of GPU memory in use; None where there is no GPU, or its driver does not say."""
        try:
            return self._gpu().get("memory_used_bytes") if self._gpu else None
        except Exception:  # a driver's trouble, of any kind, ends no run
            return None

    def watch_gpu(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Export a GPU's use: `read`, called at each scrape, gives values by names of GPU_USE, some or all."""
        self.registry.register(_GpuCollector(read))

    def text(self) -> bytes:
        """All values in Prometheus' text format: the content of `metrics.prom`."""
        return generate_latest(self.registry)

    def push(self, url: str, grouping: Mapping[str, str], only_ending: bool = False) -> None:
        """Send all values to a Pushgateway, or only how the attempt ended; a failure is a warning.

        `grouping` is stable over restarts, as groups never expire: `job` (a Job's name, not a pod's) and what else
        tells runs apart.
        """
        push_registry(self._ending.alone if only_ending else self.registry, url, grouping)


def push_registry(registry: CollectorRegistry, url: str, grouping: Mapping[str, str]) -> None:
    """Send all values of a registry to a Pushgateway; a failure is a warning."""
    rest = {name: value for name, value in grouping.items() if name != "job"}
    try:
        pushadd_to_gateway(url, grouping["job"], registry, rest, timeout=PUSH_SECONDS)
    except (OSError, HTTPException, ValueError) as error:
        log.warning("metrics not pushed", url=url, reason=str(error))


class _Gauge(Gauge):
    """A gauge that has no sample until it is first set: unknown is not zero."""

    known = False

    def set(self, value: float) -> None:
        super().set(value)
        self.known = True

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            if not self.known:
                family.samples.clear()
            yield family


class _Counter(Counter):
    """A counter that has no sample before its first count, which may be 0."""

    known = False

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        super().inc(amount, exemplar)
        self.known = True

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            if not self.known:
                family.samples.clear()
            yield family


class _PhaseCollector(Collector):
    """The phases as one family, so that a scrape never sees two of them, or none."""

    def __init__(self) -> None:
        self.current: Phase = "starting"
        self._since = time.monotonic()
        self._spent: dict[str, float] = {}

    def enter(self, name: Phase) -> None:
        """From now on it is `name`."""
        self._spent = self.seconds()
        self.current, self._since = name, time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase until now."""
        here = self._spent.get(self.current, 0.0) + time.monotonic() - self._since
        return {**self._spent, self.current: here}

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("pretrain_phase", "1 for what the job is doing.", labels=["phase"])
        current = self.current
        for phase in get_args(Phase):
            family.add_metric([phase], phase == current)
        yield family


class _EndingCollector(Collector):
    """The ways to end as one family: all 0 while the attempt lives, then one of them 1."""

    code: int | None = None

    def __init__(self) -> None:
        self.alone = CollectorRegistry()
        self.alone.register(self)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("pretrain_ended", "1 for how the attempt ended.", labels=["code", "reason"])
        current = self.code
        for code, reason in ENDINGS.items():
            family.add_metric([str(code), reason], code == current)
        yield family


class _GpuCollector(Collector):
    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        try:
            use = self._read()
        except Exception:  # a driver's trouble, of any kind, must not hide the other metrics
            return
        for name, text in GPU_USE.items():
            if name in use:
                yield GaugeMetricFamily(f"pretrain_gpu_{name}", text, value=use[name])


def _closed(value: str, allowed: tuple[str, ...]) -> str:
    return value if value in allowed else OTHER
