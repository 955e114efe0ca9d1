"""What torch can do here: gradients, the device, whether the model fits it, and how long a step takes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from job.checks.finding import Finding, problem, size
from job.checks.machine import memory_limit
from job.checks.text import Outlook
from job.config import Config
from job.errors import ConfigError, JobError
from job.infra.device import Numerics, apply_numerics, require_gpus
from job.infra.place import ALONE, Place
from job.infra.progress import duration, short
from job.model.gpt import GPT, unfilled
from job.training.flops import training_flops_per_token
from job.training.memory import Memory, estimate, slice_of
from job.training.numerics import own_numerics
from job.training.optimizer import build_optimizer
from job.training.parallel import require_sequences
from job.training.timetable import total_steps

_WHOLE = {"cuda": 6e13}  # FLOPs of a pass, about a second: more are extrapolated from slices of the model
_WHOLE_ELSEWHERE = 3e10
_ENOUGH = 0.5  # seconds of measuring
_LONG = 30 * 86400.0  # seconds of training that a person should know of before


def autograd(device: torch.device) -> Finding:
    """Whether torch's gradients on `device` are those of the textbook's neuron, known to four digits."""
    w, b = (torch.tensor([value], device=device, requires_grad=True) for value in (2.2, 0.0))
    x, y = (torch.tensor([value], device=device) for value in (1.1, 1.0))
    torch.autograd.backward(F.binary_cross_entropy(torch.sigmoid(x * w + b), y))
    assert w.grad is not None
    assert b.grad is not None
    found = [round(gradient.item(), 4) for gradient in (w.grad, b.grad)]
    said = f"gradients of w and b on {device}: {found[0]} and {found[1]}"
    if found != [-0.0898, -0.0817]:
        reason = ConfigError(f"{said}, expected -0.0898 and -0.0817")
        return problem("autograd", reason, "torch computes wrongly here: install it again, or use another machine")
    return Finding(about="autograd", said=said)


def device(config: Config, place: Place) -> tuple[Finding, Numerics | None]:
    """What the run would compute with."""
    try:
        numerics = own_numerics(config, None, place)
        apply_numerics(numerics, place)
    except JobError as error:
        return problem("device", error), None
    name = torch.cuda.get_device_name() if numerics.device == "cuda" else f"{numerics.threads} threads"
    said = f"{numerics.device} ({name}), {numerics.precision}, torch {torch.__version__}"
    return Finding(about="device", said=said, facts=numerics.plain()), numerics


def processes(config: Config, place: Place, numerics: Numerics) -> Iterator[Finding]:
    """Whether so many can train together here; nothing is said of one alone."""
    here = place.local_world_size
    if place.world_size == 1:
        return
    said = f"{place.world_size} train together ({numerics.parallel}), {here} on this machine"
    yield Finding(about="processes", said=said)
    require_sequences(config, place.world_size)
    if numerics.device == "cuda":
        require_gpus(here, place)


def state_bytes(config: Config, outlook: Outlook) -> int:
    """Of a checkpoint, as long as no device is known: parameters and two moments of each."""
    return 3 * 4 * unfilled(config.model, outlook.vocab_size, "meta").parameter_count


def memory(
    config: Config, outlook: Outlook, numerics: Numerics, place: Place = ALONE
) -> tuple[Iterator[Finding], Memory]:
    """Whether training fits; the host also holds the copy that a checkpoint is written from."""
    need = estimate(config, outlook.vocab_size, numerics, torch.device(numerics.device))
    return _judged(config, need, numerics, place), need


def _judged(config: Config, need: Memory, numerics: Numerics, place: Place) -> Iterator[Finding]:
    here = place.local_world_size
    snapshots = need.snapshot * here // place.world_size  # each process has its share
    each = f" in each of {here} processes" if here > 1 else ""
    parts = ", ".join(
        f"{name} {size(need.plain()[name])}" for name in ("model", "gradients", "optimizer", "activations")
    )
    if numerics.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        said = f"a step takes about {size(need.step)}{each} ({parts})"
        yield _room("memory: GPU", said, need.step, free, config, need)
        yield _room("memory: host", f"checkpoints take {size(snapshots)}", snapshots, memory_limit(), config)
        return
    total = here * need.step + snapshots
    said = f"a step takes about {size(need.step)}{each} ({parts}), checkpoints {size(snapshots)}"
    yield _room("memory", said, total, memory_limit(), config, need)


def _room(about: str, said: str, needed: int, free: int | None, config: Config, need: Memory | None = None) -> Finding:
    facts = {"needed": needed, "free": free, **(need.plain() if need else {})}
    if free is None:
        return Finding(about=about, said=f"{said}; how much there is, is not known", facts=facts)
    said = f"{said}; {size(free)} are free"
    if needed <= free:
        return Finding(about=about, said=said, facts=facts)
    rows = config.training.rows_per_pass
    smaller = f"training.micro_batch_size below {rows}" if rows > 1 else "a smaller model or model.context_length"
    advice = f"{smaller}, more memory, or runtime.parallel=fsdp over several processes"
    return Finding(about=about, level="error", said=said, advice=advice, code=ConfigError.exit_code, facts=facts)


@dataclass(frozen=True, slots=True)
class _Speed:
    """Seconds of a forward and backward pass, and of an update."""

    of_pass: float
    of_update: float
    measured: bool


def step(config: Config, outlook: Outlook, numerics: Numerics, fits: bool) -> Finding:
    """How long a step takes, and all of them."""
    rows, per_pass = config.training.rows_of_a_rank(numerics.world_size)
    speed = _speed(config, outlook.vocab_size, numerics, per_pass, fits)
    passes = -(-rows // per_pass)
    seconds = passes * speed.of_pass + speed.of_update
    tokens = config.tokens_per_step / seconds
    steps = total_steps(config.training, _windows(config, outlook)) if _has_end(config, outlook) else None
    how = "measured" if speed.measured else "extrapolated from two blocks"
    if numerics.world_size > 1:
        how += f", for one of {numerics.world_size} processes: what they say to each other comes on top"
    said = f"{seconds:.3g} s a step ({how}), {short(tokens)} tokens a second"
    facts = {"seconds": seconds, "tokens_per_second": tokens, "measured": speed.measured, "steps": steps}
    if steps is None:
        return Finding(about="time", said=f"{said}; how many steps follows from the corpus", facts=facts)
    whole = steps * seconds + _evaluating(config, steps, passes * speed.of_pass / 3)
    if limit := config.training.max_seconds:
        whole = min(whole, limit)
    facts["total_seconds"] = whole
    said = f"{said}; {steps:,} steps take about {duration(whole)}, evaluations included"
    if whole > _LONG:
        return Finding(about="time", level="warning", said=said, advice="a faster device, or fewer steps", facts=facts)
    return Finding(about="time", said=said, facts=facts)


def _has_end(config: Config, outlook: Outlook) -> bool:
    return outlook.tokens is not None or (config.training.max_steps is not None and config.training.epochs is None)


def _windows(config: Config, outlook: Outlook) -> int:
    return max(1, int((outlook.tokens or 0) * config.data.split[0]) // config.window_stride)


def _evaluating(config: Config, steps: int, seconds_of_batch: float) -> float:
    """Seconds of all evaluations on train and validation; 0 where they are whole splits or follow epochs."""
    every, batches = config.training.eval_every, config.training.eval_batches
    return 0.0 if every == "epoch" or batches is None else (steps // every + 1) * 2 * batches * seconds_of_batch


def _speed(config: Config, vocab_size: int, numerics: Numerics, rows: int, fits: bool) -> _Speed:
    """Measured on the model itself where that takes little; else on one and two blocks and part of a sequence."""
    target, layers, T = torch.device(numerics.device), config.model.n_layer, config.model.context_length
    flops = training_flops_per_token(unfilled(config.model, vocab_size, "meta")) * rows * T
    if fits and flops < _WHOLE.get(numerics.device, _WHOLE_ELSEWHERE):
        whole = slice_of(config.model, layers, vocab_size, target)
        return _Speed(*_timed(whole, rows, T, config, numerics), measured=True)
    two = unfilled(replace(config.model, n_layer=2), vocab_size, "meta")
    most = _WHOLE.get(numerics.device, _WHOLE_ELSEWHERE) / training_flops_per_token(two)
    long = max(2, min(T, int(most)))
    (of_one, _), (of_short, _), (of_two, update) = (
        _timed(slice_of(config.model, few, vocab_size, target), 1, length, config, numerics)
        for few, length in ((1, long), (2, long // 2), (2, long))
    )
    a_token = max(0.0, of_two - of_short) / (long - long // 2)
    in_a_block = max(0.0, of_two - of_one) / long
    whatever_the_length = max(0.0, of_two - long * a_token)  # casts of parameters, room for gradients
    of_pass = whatever_the_length + rows * T * (a_token + (layers - 2) * in_a_block)
    parameters = unfilled(config.model, vocab_size, "meta").parameter_count
    return _Speed(of_pass, update * parameters / two.parameter_count, measured=False)


def _timed(model: GPT, rows: int, length: int, config: Config, numerics: Numerics) -> tuple[float, float]:
    """Seconds of a pass over `rows` sequences of `length` and of an update: the fastest of some, after a first one."""
    optimizer = build_optimizer(model, config.optimizer)
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=numerics.device)
    passes: list[float] = []
    updates: list[float] = []
    until = 0.0
    while len(passes) < 3 or (time.perf_counter() < until and len(passes) < 20):
        started = _now(numerics)
        with numerics.autocast():
            loss = model(tokens, tokens)
        torch.autograd.backward(loss)
        between = _now(numerics)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = _now(numerics)
        passes.append(between - started)
        updates.append(ended - between)
        until = until or ended + _ENOUGH
    return min(passes[1:]), min(updates[1:])


def _now(numerics: Numerics) -> float:
    if numerics.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
