"""What is trained and what trains it: model, optimizer, scaler, on one device with one set of numerics."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from job.config import Config
from job.data.loader import Batch
from job.infra.device import Numerics, apply_numerics
from job.infra.ranks import ALONE, Ranks
from job.model.gpt import GPT, unfilled
from job.training.numerics import may_replay
from job.training.optimizer import build_optimizer
from job.training.parallel import Parallel, Whole
from job.training.recorded import RecordedPasses


@dataclass(frozen=True, slots=True)
class Learner:
    """A model that can be updated from batches."""

    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    numerics: Numerics
    device: torch.device
    parallel: Parallel
    recorded: RecordedPasses | None = None  # where passes may be replayed

    def backward(self, batch: Batch, rows_per_pass: int, advance: Callable[[], None] = lambda: None) -> Tensor:
        """Gradients of the mean loss of the whole batch, however it is cut; returns that loss, nats per token.

        Args:
            batch: All sequences of the step that are this rank's.
            rows_per_pass: Sequences of one forward pass.
            advance: Called after each pass.
        """
        shares = []
        for rows, weight, last in self.parallel.passes(len(batch.inputs), rows_per_pass):
            inputs = batch.inputs[rows].to(self.device, non_blocking=True)
            targets = batch.targets[rows].to(self.device, non_blocking=True)
            share = self.recorded.run(inputs, targets, weight) if self.recorded else None
            shares.append(self._pass(inputs, targets, weight, last) if share is None else share)
            advance()
        return self.parallel.total(sum(shares[1:], shares[0]))

    def _pass(self, inputs: Tensor, targets: Tensor, weight: float, last: bool) -> Tensor:
        """`weight` times the mean loss of these sequences, its gradients added to the parameters'."""
        with self.parallel.syncing(last):
            with self.numerics.autocast():
                loss = self.parallel.forward(inputs, targets)
            share = loss * weight
            torch.autograd.backward(self.scaler.scale(share))
        return share.detach()

    def update(self, loss: Tensor, learning_rate: float, clip_norm: float | None) -> Tensor:
        """Clip and step, unless loss or gradients are not finite; returns the gradients' norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        every = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        parameters = [parameter for parameter in every if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.scaler.is_enabled():
            gradients[0] += 0 * loss  # the scaler looks at gradients only: not finite times 0 is no number
            self.scaler.unscale_(self.optimizer)
        norm = total_norm(gradients)
        if clip_norm is not None:
            clip_grads_with_norm_(parameters, clip_norm, norm)
        norm = self.parallel.number(norm)
        if not self.scaler.is_enabled():
            # The fused update looks at this on the device, so that no step waits for an answer. Only what is not finite
            # times 0 is no number.
            self.optimizer.found_inf = torch.isnan(0 * (norm + loss)).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for parameter in parameters:
            parameter.grad = None
        return norm


def total_norm(gradients: list[Tensor]) -> Tensor:
    """torch's `get_total_norm` of gradients that are all of one type on one device, without asking each about that."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def build_learner(
    config: Config, numerics: Numerics, vocab_size: int, restoring: bool, ranks: Ranks = ALONE
) -> Learner:
    """A learner with fresh parameters from the seed, or, to be restored, with room for stored ones."""
    device = apply_numerics(numerics, ranks.place)
    model = empty_model(config, vocab_size, device) if restoring else fresh_model(config, vocab_size).to(device)
    if numerics.compile:
        model.compile(mode="reduce-overhead" if config.runtime.cuda_graphs else None)
    parallel: Parallel = Whole(model)
    if ranks.place.world_size > 1:
        from job.training.spread import spread  # noqa: PLC0415 - FSDP takes a second to import

        parallel = spread(model, config, numerics, ranks, device)
    optimizer = build_optimizer(model, config.optimizer)
    recorded = RecordedPasses(model) if may_replay(config, numerics) else None
    return Learner(model, optimizer, _fresh_scaler(numerics, device), numerics, device, parallel, recorded)


def _fresh_scaler(numerics: Numerics, device: torch.device) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device.type, enabled=numerics.precision == "fp16")


def begin_again(learner: Learner, config: Config) -> None:
    """Make a learner what it was before the first step."""
    fresh = dict(fresh_model(config, learner.model.vocab_size).named_parameters())
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            learner.parallel.place(parameter, fresh[name])
    learner.optimizer.state.clear()
    learner.scaler.load_state_dict(_fresh_scaler(learner.numerics, learner.device).state_dict())


def fresh_model(config: Config, vocab_size: int) -> GPT:
    """A model with parameters from the seed, drawn on the CPU: the same on every device."""
    torch.manual_seed(config.seed)
    return GPT(config.model, vocab_size)


def empty_model(config: Config, vocab_size: int, device: torch.device) -> GPT:
    """A model whose parameters have room and no values yet."""
    return unfilled(config.model, vocab_size, device)
