"""One rung of the ladder, trained and measured from beginning to end: nothing is kept of it but its figures."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from job.config import Config
from job.data.loader import Batch, StepDataset
from job.errors import ConfigError
from job.infra.device import Numerics, apply_numerics, choose_numerics
from job.model.generation import generate
from job.model.gpt import GPT
from job.model.ladder import NAMES, RUNGS, build_rung
from job.model.rows import PlainRows
from job.model.sampling import Sampling
from job.training.evaluation import Evaluator
from job.training.optimizer import build_optimizer
from job.training.randomness import generator_for
from job.training.schedule import learning_rate
from job.training.text import Text
from job.training.timetable import total_steps

MEASURED_TOKENS = 64_000  # of each split: the loss is known to about 0.01
_LOOK_EVERY = 50  # steps between two looks at whether to stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Climb:
    """A rung to be trained with one seed.

    Args:
        config: Shape, data, optimizer and length; its seed is the one under which evaluation windows are drawn.
        seed: Of starting values, of the order of data and of dropout.
        sampled: Whether it is to write a sample.
    """

    rung: str
    config: Config
    text: Text
    seed: int
    sampled: bool

    @property
    def steps(self) -> int:
        """Updates from beginning to end. ConfigError when only time would end it."""
        steps = total_steps(self.config.training, self.text.order.windows)
        if steps is None:
            raise ConfigError("the ladder trains every rung alike: set training.max_steps or training.epochs")
        return steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """What became of it.

    Args:
        train_loss, val_loss: Nats per token at the end, without dropout; not finite where training diverged.
        seconds: Training alone.
        sample: Empty when none was asked for.
    """

    rung: str
    seed: int
    parameters: int
    steps: int
    train_loss: float
    val_loss: float
    seconds: float
    device: str
    sample: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def climb(task: Climb, advance: Callable[[], None]) -> Reached:
    """Train and measure a rung; `advance` is called now and then, and may raise to stop."""
    config, text = replace(task.config, seed=task.seed), task.text
    numerics = choose_numerics(config.runtime, None)
    device = apply_numerics(numerics)
    torch.manual_seed(task.seed)
    rung = RUNGS[NAMES.index(task.rung)]
    model = build_rung(rung, config.model, text.tokenizer.vocab_size).to(device)
    order = replace(text.order, seed=task.seed)
    batches = StepDataset(text.files.train.open(), order, config.training.batch_size)
    started = time.monotonic()
    _train(model, config, batches, task.steps, numerics, device, advance)
    seconds = time.monotonic() - started
    count = max(1, math.ceil(MEASURED_TOKENS / config.tokens_per_step))
    evaluator = Evaluator(text.evaluation_sets(task.config, count), numerics, device, advance=lambda *_: advance())
    train_loss, val_loss = (evaluator.measure(model, split).loss for split in ("train", "validation"))
    return Reached(
        rung=task.rung,
        seed=task.seed,
        parameters=model.parameter_count,
        steps=task.steps,
        train_loss=train_loss,
        val_loss=val_loss,
        seconds=round(seconds, 2),
        device=numerics.device,
        sample=_sample(model, task, device) if task.sampled and math.isfinite(val_loss) else "",
    )


def _train(
    model: GPT,
    config: Config,
    batches: StepDataset,
    steps: int,
    numerics: Numerics,
    device: torch.device,
    advance: Callable[[], None],
) -> None:
    """The whole of training: what the run's learner does, without accumulation and without looking at the loss."""
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=numerics.precision == "fp16")
    clip_norm = config.optimizer.clip_norm
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config.optimizer)
        loss = _loss(model, batches[step], numerics, device)
        torch.autograd.backward(scaler.scale(loss))
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if step % _LOOK_EVERY == 0:
            advance()


def _loss(model: GPT, batch: Batch, numerics: Numerics, device: torch.device) -> Tensor:
    inputs, targets = batch.inputs.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
    with numerics.autocast():
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def _sample(model: GPT, task: Climb, device: torch.device) -> str:
    """How the model goes on from the run's prompt, drawn as the run's samples are."""
    training, tokenizer = task.config.training, task.text.tokenizer
    prompt = task.text.prompt(task.config)
    new = generate(
        PlainRows(model, device),
        prompt,
        max_new_tokens=training.sample_tokens,
        sampling=Sampling(temperature=training.sample_temperature, top_k=training.sample_top_k),
        generator=generator_for(device, task.seed, "ladder"),
    )
    return tokenizer.decode([*prompt, *new])
