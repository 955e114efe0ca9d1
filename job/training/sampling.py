"""Text that the model writes while it is trained."""

from dataclasses import dataclass

import torch

from job.config import TrainingConfig
from job.data.tokenizer import Tokenizer
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.gpt import GPT
from job.model.rows import CachedRows, PlainRows, Rows
from job.model.sampling import Sampling
from job.training.randomness import generator_for


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the run's samples: the same prompt each time, randomness from seed and step alone.

    Args:
        config: Temperature, top-k and length.
        tokenizer: Of the run.
        prompt: Token ids to continue.
        seed: Of the run.
        device: Where the model is.
    """

    config: TrainingConfig
    tokenizer: Tokenizer
    prompt: list[int]
    seed: int
    device: torch.device

    def draw(self, model: GPT, step: int) -> tuple[str, str]:
        """The prompt and how `model` goes on."""
        new = generate(
            self._rows(model),
            self.prompt,
            max_new_tokens=self.config.sample_tokens,
            sampling=Sampling(temperature=self.config.sample_temperature, top_k=self.config.sample_top_k),
            generator=generator_for(self.device, self.seed, "sample", step),
        )
        prompt = self.tokenizer.decode(self.prompt)
        return prompt, self.tokenizer.decode([*self.prompt, *new])[len(prompt) :]

    def _rows(self, model: GPT) -> Rows:
        """On a CPU a copy that remembers what it read, for the moment; else, or when it is in shards, the model."""
        if self.device.type == "cpu" and not hasattr(model.wte.weight, "device_mesh"):
            return CachedRows(Decoder(model), 1)
        return PlainRows(model, self.device)
