"""A model small enough to enumerate: a table of logits by position and last token."""

import torch
from torch import Tensor

V = 5
PROMPT = [1, 2]


class Table:
    """A model whose next token depends on the last one and the position, and which remembers what it was shown."""

    vocab_size = V

    def __init__(self, seed: int = 0, context_length: int = 8) -> None:
        self.context_length = context_length
        self.logits = 2 * torch.randn(context_length, V, V, generator=torch.Generator().manual_seed(seed))
        self.seen: list[list[list[int]]] = []

    def next_logits(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens.tolist())
        return self.logits[tokens.shape[1] - 1, tokens[:, -1]]


def scripted(*steps: dict[int, list[float]]) -> Table:
    """A model that, n tokens after PROMPT, follows token t with the probabilities steps[n][t]; else with equal ones."""
    model = Table()
    model.logits = torch.zeros(model.context_length, V, V)
    for n, rows_by_token in enumerate(steps):
        for token, probabilities in rows_by_token.items():
            model.logits[len(PROMPT) - 1 + n, token] = torch.tensor(probabilities).log()
    return model
