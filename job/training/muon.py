"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer with one learning rate.

Muon makes an update's singular values equal (Jordan et al. 2024). Scaled to the size that AdamW's updates have (Liu et
al. 2025, section 2.2), it takes learning rates and decay that are meant for AdamW.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's two, with their groups and their state in one place.

    As torch's fused optimizers do, it looks at `found_inf` on the device: where that is not 0 a step changes nothing.

    Args:
        matrices: What Muon updates.
        groups: What AdamW updates, in groups with their weight decay.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        matrices: Iterable[Tensor],
        groups: list[dict[str, Any]],
        muon: Mapping[str, Any],
        adamw: Mapping[str, Any],
    ) -> None:
        self._muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **muon)
        self._adamw = torch.optim.AdamW(groups, fused=True, **adamw)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of everything, unless `found_inf` says otherwise."""
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step(closure)
        if self.found_inf is None:
            self._muon.step()  # type: ignore[no-untyped-call]
        elif self.found_inf.device.type == "cpu":
            if not self.found_inf:
                self._muon.step()  # type: ignore[no-untyped-call]
        else:
            self._step_without_waiting(self.found_inf != 0)

    @torch.no_grad()
    def _step_without_waiting(self, bad: Tensor) -> None:
        """Muon's step, taken back on the device where it should not have been made."""
        matrices = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        before = [p.clone() for p in matrices]
        momenta = [self.state[p]["momentum_buffer"].clone() if self.state[p] else torch.zeros_like(p) for p in matrices]
        self._muon.step()  # type: ignore[no-untyped-call]
        for p, old, momentum in zip(matrices, before, momenta, strict=True):
            p.copy_(torch.where(bad, old, p))
            kept = self.state[p]["momentum_buffer"]
            kept.copy_(torch.where(bad, momentum, kept))
