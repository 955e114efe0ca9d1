"""Passes that are recorded once and replayed: the same operations, so the same bits, without what else a pass costs.

A pass of a tiny model takes longer in modules and in autograd than in its products. Nothing is compiled or kept, and
whether a pass was replayed leaves no trace in its results: a run may be continued with or without.
"""

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from job.model.gpt import GPT
from job.training.recording import NotRepeatableError, Recording, Replay

log = structlog.get_logger(__name__)
_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


class RecordedPasses:
    """Forward and backward passes of a model on the CPU, recorded for each shape and weight when first asked for."""

    def __init__(self, model: GPT) -> None:
        self._model = model
        self._parameters = list(model.parameters())
        self._trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._replays: dict[tuple[torch.Size, float], Replay | None] = {}

    def run(self, inputs: Tensor, targets: Tensor, weight: float) -> Tensor | None:
        """`weight` times the loss of a pass (b, T), its gradients added to the parameters'; None: it has to be made."""
        key = inputs.shape, weight
        if key not in self._replays:
            self._replays[key] = self._record(inputs, targets, weight)
        replay = self._replays[key]
        if replay is None:
            return None
        share, *gradients = _replayed(replay, inputs, targets, self._parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad.add_(gradient)
        return share

    def _record(self, inputs: Tensor, targets: Tensor, weight: float) -> Replay | None:
        """The pass as its operations, if they do to the bit what the pass does; torch's generator stays as it is."""
        before = torch.get_rng_state()
        try:
            recording = Recording([inputs, targets, *self._parameters])
            with recording:
                made = self._made(inputs, targets, weight)
            replay = recording.replay(made)
            torch.set_rng_state(before)
            expected, drawn = self._made(inputs, targets, weight), torch.get_rng_state()
            torch.set_rng_state(before)
            found = _replayed(replay, inputs, targets, self._parameters)
            if not (_equal(found, expected) and torch.equal(torch.get_rng_state(), drawn)):
                raise NotRepeatableError("a replay differed from the pass")
        except (NotRepeatableError, RuntimeError, TypeError) as error:  # the last two: torch would not have it so
            log.info("passes are not replayed", reason=str(error).partition("\n")[0], sequences=len(inputs))
            return None
        finally:
            torch.set_rng_state(before)
        log.info(
            "passes are replayed",
            reason="so small that calling costs more than computing; equal to the bit",
            sequences=len(inputs),
            operations=recording.operations,
        )
        return replay

    def _made(self, inputs: Tensor, targets: Tensor, weight: float) -> list[Tensor]:
        """The pass itself: its share of the loss and all gradients, each in memory of its own."""
        loss = self._model(inputs, targets)
        share = loss if weight == 1 else loss * weight
        gradients = torch.autograd.grad(share, self._trained)
        taken: set[int] = set()
        own = []
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            place = gradient.untyped_storage().data_ptr()
            fits = gradient.stride() == parameter.stride() and place not in taken
            own.append(gradient if fits else torch.empty_like(parameter).copy_(gradient))
            taken.add(place)
        return [share.detach(), *own]


def _replayed(replay: Replay, inputs: Tensor, targets: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    # As no_grad, but that no operation asks about it, nor notes what is a view of what: a sixth of a pass.
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_VIEWS):
        return replay(inputs, targets, *parameters)


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        torch.equal(one, other) and one.stride() == other.stride() and one.dtype == other.dtype
        for one, other in zip(found, expected, strict=True)
    )
