"""The optimizer over a model's parameters, with weight decay where the config wants it."""

from typing import Any

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from job.config import OptimizerConfig
from job.model.gpt import GPT
from job.training.adamw import HostAdamW
from job.training.muon import MuonWithAdamW


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizer:
    """A fused AdamW (Loshchilov and Hutter 2019), or Muon with it; the learning rate is set before every update.

    With `decay = "matrices"` norms and biases are left out of the weight decay, as in GPT-2's successors.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in model.h.parameters() if p.requires_grad and p.dim() == 2] if config.name == "muon" else []
    taken = set(map(id, matrices))
    left = [p for p in parameters if id(p) not in taken]
    decayed = [p for p in left if config.decay == "all" or p.dim() >= 2]
    others = [p for p in left if config.decay != "all" and p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.name == "adamw":
        whole_here = all(type(p) is Parameter and p.device.type == "cpu" for p in parameters)
        return HostAdamW(groups, **adamw) if whole_here else AdamW(groups, fused=True, **adamw)
    muon = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "momentum": config.momentum}
    return MuonWithAdamW(matrices, groups, muon, adamw)
