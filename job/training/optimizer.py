"""AdamW over a model's parameters, with weight decay where the config wants it."""

import torch
from torch import nn

from job.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """A fused AdamW (Loshchilov and Hutter 2019); its learning rate is set before every update.

    With `decay = "matrices"` norms and biases are left out of the weight decay, as in GPT-2's successors.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if config.decay == "all" or p.dim() >= 2]
    others = [p for p in parameters if config.decay != "all" and p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
