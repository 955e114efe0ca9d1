"""Randomness without state: every draw is seeded by what it is for, so nothing random is ever saved."""

import hashlib

import torch


def seed_for(*what: int | str) -> int:
    """A 63-bit seed that depends on every part of `what`, e.g. `seed_for(config.seed, "step", step, rank)`."""
    text = "\x1f".join(map(str, what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed the generators that a step on `device` draws from; a fraction of what torch.manual_seed costs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def generator_for(device: torch.device, *what: int | str) -> torch.Generator:
    """A generator of its own for what is drawn outside the steps."""
    return torch.Generator(device).manual_seed(seed_for(*what))
