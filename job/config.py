"""Every setting of a run: frozen values that cannot be constructed wrong.

A section checks itself when it is built and reports all its problems at once. Settings that may be left open are
`None` and documented with what they become. Files, environment and flags are read in `config_file.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from job.errors import ConfigError
from job.uris import lies_in

Period = int | Literal["epoch"]
DEFAULT_CORPUS = "builtin:python-docs"
WEIGHTS_HOSTS = (  # OpenAI's own, and mirrors
    "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}",
    "https://huggingface.co/openai-community/{name}/resolve/main",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2/{size}",
)


def _require(*rules: tuple[bool, str]) -> None:
    """Raise ConfigError with the text of every rule that does not hold."""
    problems = [text for holds, text in rules if not holds]
    if problems:
        raise ConfigError(*problems)


def _positive(section: str, **values: float | None) -> list[tuple[bool, str]]:
    return [
        (value is None or value > 0, f"{section}.{name}={value} must be greater than 0")
        for name, value in values.items()
    ]


def _share(section: str, **values: float | None) -> list[tuple[bool, str]]:
    return [
        (value is None or 0 <= value < 1, f"{section}.{name}={value} must be at least 0 and below 1")
        for name, value in values.items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of the GPT; the vocabulary size comes from the tokenizer. Defaults are GPT-2 small's."""

    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads of a block
    n_embd: int = 768  # width: channels of each token
    head_size: int | None = None  # channels of one head; unset: n_embd / n_head
    context_length: int = 1024  # longest sequence, tokens
    dropout: float = 0.0  # default of the three below
    embedding_dropout: float | None = None  # of tokens and positions together; unset: dropout
    attention_dropout: float | None = None  # of attention weights; unset: dropout
    residual_dropout: float | None = None  # of what attention and feed-forward add; unset: dropout
    bias: bool = True  # of projections, feed-forward and norms
    qkv_bias: bool = True  # of queries, keys and values
    head_bias: bool = False  # of lm_head; needs tie_weights=false
    tie_weights: bool = True  # lm_head shares wte's weight
    final_norm: bool = True  # layer norm before lm_head
    activation: Literal["gelu", "relu"] = "gelu"  # of the feed-forward; gelu is GPT-2's tanh form
    attention_scale: Literal["head", "embd"] = "head"  # 1/sqrt(head size) or 1/sqrt(n_embd)
    init: Literal["gpt2", "torch"] = "gpt2"  # of weights: GPT-2's (0.02, less for what is added), or torch's own

    def __post_init__(self) -> None:
        _require(
            *_positive(
                "model",
                n_layer=self.n_layer,
                n_head=self.n_head,
                n_embd=self.n_embd,
                head_size=self.head_size,
                context_length=self.context_length,
            ),
            *_share(
                "model",
                dropout=self.dropout,
                embedding_dropout=self.embedding_dropout,
                attention_dropout=self.attention_dropout,
                residual_dropout=self.residual_dropout,
            ),
            (
                self.head_size is not None or self.n_head < 1 or self.n_embd % self.n_head == 0,
                f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head} (or set model.head_size)",
            ),
            (
                not (self.tie_weights and self.head_bias),
                "model.head_bias=true needs model.tie_weights=false",
            ),
        )

    @property
    def head_width(self) -> int:
        """Channels of one attention head (D)."""
        return self.head_size if self.head_size is not None else self.n_embd // self.n_head

    def dropout_of(self, place: Literal["embedding", "attention", "residual"]) -> float:
        """Dropout probability at `place`: its own setting, else `dropout`."""
        own: float | None = getattr(self, f"{place}_dropout")
        return self.dropout if own is None else own


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    corpus: tuple[str, ...] = (DEFAULT_CORPUS,)  # where text is: one URI or a list
    tokenizer: str = "gpt2"  # a tiktoken encoding, char, byte, or bpe:N for one of N entries trained on the corpus
    tokenizer_dir: str | None = None  # folder with vocab.bpe and encoder.json
    tokenizer_workers: int | None = None  # processes that tokenize; 0: none, unset: one a core where it is worth it
    text_field: str = "text"  # of .jsonl documents; .parquet: the column
    bad_lines: Literal["stop", "skip"] = "stop"  # at a .jsonl line or .parquet row without text; skip counts them
    split: tuple[float, ...] = (0.9, 0.05, 0.05)  # train, validation and, if there is a third, test
    order: Literal["windows", "random"] = "windows"  # windows in a new order each epoch, or blocks anywhere
    stride: int | None = None  # tokens from one window to the next; unset: context_length
    workers: int = 0  # loader processes
    cache_dir: str | None = None  # unset: $XDG_CACHE_HOME/gpt-pretrain-job, or ~/.cache/gpt-pretrain-job
    cache_uri: str | None = None  # s3:// or folder where token files are shared between machines
    downloads: int = 4  # files pulled at once
    connections: int = 4  # for each file of 64 MiB and more over https
    max_bytes: int = 1 << 40  # of one download, and of one file after decompression
    weights_hosts: tuple[str, ...] = WEIGHTS_HOSTS  # folders with GPT-2 by {size} or {name}, tried in this order

    def __post_init__(self) -> None:
        _require(
            (bool(self.corpus) and all(self.corpus), "data.corpus is empty"),
            (bool(self.tokenizer), "data.tokenizer is empty"),
            (
                len(self.split) in (2, 3) and all(0 <= share <= 1 for share in self.split),
                f"data.split={list(self.split)} must be two or three shares from 0 to 1: train, validation, test",
            ),
            (abs(sum(self.split) - 1) < 1e-6, f"data.split={list(self.split)} must sum to 1"),
            (self.workers >= 0, f"data.workers={self.workers} must be at least 0"),
            *_positive(
                "data",
                stride=self.stride,
                downloads=self.downloads,
                connections=self.connections,
                max_bytes=self.max_bytes,
            ),
            (
                self.tokenizer_workers is None or self.tokenizer_workers >= 0,
                f"data.tokenizer_workers={self.tokenizer_workers} must be at least 0",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW or Muon and the schedule. Learning rates are per step; warmup counts in steps."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, and AdamW for the rest
    learning_rate: float = 6e-4  # the peak
    initial_learning_rate: float = 0.0  # where warmup starts
    min_learning_rate: float = 0.0  # where decay ends
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"  # after warmup; wsd: warmup, stable, decay
    warmup_steps: int = 0  # steps from initial_learning_rate up to the peak
    cooldown: float = 0.2  # share of the run that wsd spends in its decay
    beta1: float = 0.9  # of AdamW: memory of the gradient
    beta2: float = 0.95  # of AdamW: memory of its square
    momentum: float = 0.95  # of muon
    epsilon: float = 1e-8  # of AdamW, beside the square root
    weight_decay: float = 0.1  # share of learning_rate by which weights shrink each step
    decay: Literal["matrices", "all"] = "matrices"  # which parameters weight_decay touches
    clip_norm: float | None = 1.0  # of all gradients together; none: no clipping

    def __post_init__(self) -> None:
        _require(
            *_positive(
                "optimizer",
                learning_rate=self.learning_rate,
                epsilon=self.epsilon,
                clip_norm=self.clip_norm,
            ),
            *_share("optimizer", beta1=self.beta1, beta2=self.beta2, momentum=self.momentum),
            (0 < self.cooldown <= 1, f"optimizer.cooldown={self.cooldown} must be above 0 and at most 1"),
            (self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must be at least 0"),
            (self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be at least 0"),
            (
                0 <= self.min_learning_rate <= self.learning_rate,
                f"optimizer.min_learning_rate={self.min_learning_rate} must be from 0 to "
                f"optimizer.learning_rate={self.learning_rate}",
            ),
            (
                self.initial_learning_rate >= 0,
                f"optimizer.initial_learning_rate={self.initial_learning_rate} must be at least 0",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long, in which batches, and what is looked at on the way. Periods count in steps."""

    batch_size: int = 12  # sequences per step over all ranks
    micro_batch_size: int | None = None  # sequences per forward pass of one rank; unset: all of its sequences
    max_steps: int | None = None  # the run's end in steps; of several ends, the first counts
    epochs: float | None = None  # its end in passes over the training split
    max_seconds: float | None = None  # its end in seconds of training, over all attempts
    eval_every: Period = 250  # steps, or "epoch"
    eval_offset: int = 0  # evaluate at steps offset, offset + every, ...
    eval_batches: int | None = 20  # of batch_size sequences, per split; none: the whole split
    sample_every: Period | None = None  # steps, or "epoch"; none: no samples
    sample_prompt: str | None = None  # unset: the first tokens of the validation split
    sample_tokens: int = 50  # tokens of a sample
    sample_temperature: float = 0.0  # 0 is greedy
    sample_top_k: int | None = None  # draw among the k most probable; none: among all
    max_nonfinite_steps: int = 5  # in a row, before the run goes back and passes over their data
    max_rollbacks: int = 3  # in a run, before it ends as diverged

    def __post_init__(self) -> None:
        periods = {name: getattr(self, name) for name in ("eval_every", "sample_every")}
        _require(
            *_positive(
                "training",
                batch_size=self.batch_size,
                micro_batch_size=self.micro_batch_size,
                max_steps=self.max_steps,
                epochs=self.epochs,
                max_seconds=self.max_seconds,
                eval_batches=self.eval_batches,
                sample_tokens=self.sample_tokens,
                sample_top_k=self.sample_top_k,
                max_nonfinite_steps=self.max_nonfinite_steps,
                **{name: value for name, value in periods.items() if value != "epoch"},
            ),
            (self.eval_offset >= 0, f"training.eval_offset={self.eval_offset} must be at least 0"),
            (self.max_rollbacks >= 0, f"training.max_rollbacks={self.max_rollbacks} must be at least 0"),
            (
                self.sample_temperature >= 0,
                f"training.sample_temperature={self.sample_temperature} must be at least 0",
            ),
            (
                any(end is not None for end in (self.max_steps, self.epochs, self.max_seconds)),
                "training has no end: set training.max_steps, training.epochs or training.max_seconds",
            ),
        )

    @property
    def rows_per_pass(self) -> int:
        """Sequences of one forward pass."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def rows_of_a_rank(self, world_size: int) -> tuple[int, int]:
        """Sequences of a step, and of one forward pass, that one of `world_size` processes has at most."""
        rows = -(-self.batch_size // world_size)
        return rows, min(rows, self.rows_per_pass)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are saved and which ones stay."""

    every: int = 250  # steps
    every_seconds: float | None = None  # also after so many seconds; none: by steps alone
    keep_last: int = 2  # newest checkpoints that stay; at least 2
    keep_every: int | None = None  # keep each checkpoint whose step is a multiple, for good
    keep_best: bool = True  # keep the one with the lowest validation loss
    verify: Literal["full", "head"] = "full"  # before old ones go: re-hash the newest, or compare sizes
    max_failures: int = 3  # failed saves in a row before the run ends

    def __post_init__(self) -> None:
        _require(
            *_positive(
                "checkpoint",
                every=self.every,
                every_seconds=self.every_seconds,
                keep_every=self.keep_every,
                max_failures=self.max_failures,
            ),
            (self.keep_last >= 2, f"checkpoint.keep_last={self.keep_last} must be at least 2"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """What boto3's own variables do not cover; region, endpoint, CA and credentials are `AWS_*`."""

    addressing_style: Literal["auto", "path", "virtual"] = "auto"  # bucket in the path or in the host name
    part_size: int = 64 << 20  # bytes; also the size from which an upload is multipart
    concurrency: int = 4  # parts at once
    checksums: Literal["when_supported", "when_required"] = "when_supported"  # when_required: where a store lacks them
    timeouts: tuple[float, ...] = (5.0, 60.0)  # seconds to connect, seconds without an answer
    stall_seconds: float | None = None  # without a byte moved, then a part is tried again; unset: half the read timeout
    encryption: str | None = None  # AES256, aws:kms or aws:kms:KEY-ID
    storage_class: str | None = None  # of every object, such as STANDARD_IA; none: the bucket's

    @property
    def patience(self) -> float:
        """Seconds that a part may stand still."""
        return self.timeouts[1] / 2 if self.stall_seconds is None else self.stall_seconds

    def __post_init__(self) -> None:
        _require(
            (self.part_size >= 5 << 20, f"storage.part_size={self.part_size} is below S3's least, {5 << 20}"),
            *_positive("storage", concurrency=self.concurrency),
            (
                len(self.timeouts) == 2 and all(seconds > 0 for seconds in self.timeouts),
                f"storage.timeouts={list(self.timeouts)} must be two numbers of seconds: connect, read",
            ),
            *_positive("storage", stall_seconds=self.stall_seconds),
            (
                self.stall_seconds is None or self.stall_seconds < self.timeouts[-1],
                f"storage.stall_seconds={self.stall_seconds} must be below the read timeout, {self.timeouts[-1]}: "
                "that would notice a silent server first, and ask it eight times",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine. What `auto` becomes is stored with the run and used again."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU, where there is one
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, where it can
    compile_cache_uri: str | None = None  # s3:// or folder to share what was compiled: code, which the job then runs
    cuda_graphs: bool = False  # of a compiled pass: for models so small that a GPU waits for Python
    deterministic: bool = False  # only algorithms that repeat bit for bit on a GPU
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # of several processes: model whole in each, or in shards
    restarts: int = 3  # of the processes that --processes started, after one of them failed
    join_seconds: float = 900.0  # that processes wait for others, whose machines may still have to be found
    threads: int | None = None  # of one process; unset: as many as the process may use
    grace_seconds: float = 30.0  # from the stop signal to the kill

    def __post_init__(self) -> None:
        _require(
            *_positive("runtime", threads=self.threads, join_seconds=self.join_seconds),
            (self.restarts >= 0, f"runtime.restarts={self.restarts} must be at least 0"),
            (self.grace_seconds >= 0, f"runtime.grace_seconds={self.grace_seconds} must be at least 0"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObserveConfig:
    """What is shown while the job runs."""

    log_every: int = 10  # steps
    metrics_port: int | None = 9108  # none: no endpoint; 0: a free one
    metrics_host: str = "auto"  # auto: all interfaces in a container, loopback elsewhere
    stall_seconds: float = 600.0  # without progress, after which /healthz answers 503
    pushgateway_url: str | None = None  # keeps the last values of a run that is gone; none: nothing is pushed
    report: bool = True  # draw report/ now and then while it trains, and at the end
    tensorboard: bool = False  # write event files for TensorBoard; needs its package

    def __post_init__(self) -> None:
        _require(
            *_positive("observe", log_every=self.log_every, stall_seconds=self.stall_seconds),
            (
                self.metrics_port is None or 0 <= self.metrics_port < 65536,
                f"observe.metrics_port={self.metrics_port} must be from 0 to 65535 (0 takes a free one)",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A run, whole. Sections refuse wrong values; what spans sections is checked here."""

    run_uri: str  # where the run is kept: a folder or s3://bucket/prefix; unset: runs/<preset>-<hash>
    seed: int = 1337  # of the first weights, the order of data, dropout and samples
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    def __post_init__(self) -> None:
        _require(
            (bool(self.run_uri), "run_uri is empty"),
            (self.seed >= 0, f"seed={self.seed} must be at least 0"),
            *self._code_lies_apart(),
            (
                self.data.stride is None or self.data.order == "windows",
                f"data.stride={self.data.stride} has no meaning with data.order={self.data.order!r}",
            ),
            (
                self.optimizer.schedule == "constant" or bool(self.training.max_steps or self.training.epochs),
                f"optimizer.schedule={self.optimizer.schedule!r} needs an end in steps: set training.max_steps or "
                "training.epochs",
            ),
        )

    def _code_lies_apart(self) -> Iterator[tuple[bool, str]]:
        """Who may write checkpoints or tokens must not thereby have the job run code."""
        if (code := self.runtime.compile_cache_uri) is None:
            return
        for name, other in (("run_uri", self.run_uri), ("data.cache_uri", self.data.cache_uri)):
            apart = other is None or not (lies_in(code, other) or lies_in(other, code))
            yield apart, f"runtime.compile_cache_uri={code} shares its place with {name}={other}: name one of its own"

    @property
    def window_stride(self) -> int:
        """Tokens from the start of one training window to the next."""
        return self.data.stride or self.model.context_length

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one step over all ranks."""
        return self.training.batch_size * self.model.context_length


SECTIONS: Mapping[str, type[Any]] = {
    entry.name: entry.default_factory  # type: ignore[misc]  # each section's factory is its class
    for entry in fields(Config)
    if entry.name not in ("run_uri", "seed")
}


def plain(config: Config) -> dict[str, Any]:
    """The whole config as JSON values, tuples as lists; what may be shown and stored.

    Queries of corpus addresses are left out: a presigned one is a secret, and another one each time. So are user and
    password of the Pushgateway.
    """
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if config.observe.pushgateway_url is not None:
        values["observe"]["pushgateway_url"] = re.sub(r"//[^/?#]*@", "//", config.observe.pushgateway_url)
    values["data"]["corpus"] = [re.sub(r"(?i)^(https?://[^?#]*)\?[^#]*", r"\1", uri) for uri in config.data.corpus]
    return values


def identity(config: Config) -> dict[str, Any]:
    """The settings that a run keeps for life: model, tokenizer, corpus, order, optimizer state and seed.

    Everything else (lengths, periods, retention, logging, schedule, device, precision, how a batch is split) may
    change from one attempt to the next.
    """
    values = plain(config)
    kept = {
        "model": list(values["model"]),
        "data": ["corpus", "tokenizer", "text_field", "split", "order", "stride"],
        "training": ["batch_size"],
        "optimizer": ["name"],
    }
    named = {f"{section}.{name}": values[section][name] for section, names in kept.items() for name in names}
    return {**named, "data.stride": config.window_stride, "seed": config.seed}


def identity_digest(facts: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of identity facts written as canonical JSON."""
    canonical = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
