"""Keys and values of tokens that were read, kept so that each is computed once. Allocated once, never grown.

Rows in use are 0, 1, ... without a gap, so that a step over all of them copies nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from job.config import ModelConfig


class KVCache:
    """Room for `rows` sequences of `context_length` tokens.

    Args:
        rows: Most sequences at a time (B).
        lengths: Tokens that each row in use holds.
        keys, values: A layer each, (B, H, context_length, D).
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        B, H, T, D = rows, config.n_head, config.context_length, config.head_width
        self.rows, self.context_length, self.dtype = B, T, dtype
        # Zeros: a key that is masked has weight 0, and 0 times whatever was in memory could be no number.
        self.keys = [torch.zeros(B, H, T, D, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.values = [torch.zeros(B, H, T, D, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.lengths: list[int] = []

    @property
    def bytes(self) -> int:
        """Memory that it takes when every row is full."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def open(self) -> int:
        """A new, empty row after the last: its number."""
        if len(self.lengths) == self.rows:
            raise IndexError(f"all {self.rows} rows of the cache are in use")
        self.lengths.append(0)
        return len(self.lengths) - 1

    def close(self, row: int) -> None:
        """Free a row. The last row takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[last]
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :length] = tensor[last, :, :length]
            self.lengths[row] = length
        del self.lengths[last]

    def copy(self, source: int, target: int, count: int) -> None:
        """Let a row hold the first `count` tokens of another, and nothing else."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :count] = tensor[source, :, :count]
        self.lengths[target] = count

    def select(self, rows: Sequence[int], since: int = 0) -> None:
        """Row i becomes what row `rows[i]` was; a row may be taken several times, or not at all.

        Args:
            since: Tokens at the start that all rows have in common, which need not be moved.
        """
        if len(rows) > self.rows:
            raise IndexError(f"{len(rows)} rows asked for, the cache has {self.rows}")
        moved = [(target, source) for target, source in enumerate(rows) if target != source]
        if moved:
            targets, sources = torch.tensor(moved, device=self.keys[0].device).unbind(1)
            part = slice(since, max(self.lengths[source] for source in rows))
            for tensor in (*self.keys, *self.values):
                tensor[targets, :, part] = tensor[sources, :, part]
        self.lengths = [self.lengths[source] for source in rows]

    def write(self, layer: int, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Consecutive tokens' (H, T, D) of one row, from position `start` on."""
        part = slice(start, start + keys.shape[1])
        self.keys[layer][row, :, part] = keys
        self.values[layer][row, :, part] = values

    def write_one(self, layer: int, positions: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """One token's (n, H, D) of the first n rows, at each row's own position."""
        n, first = len(positions), positions[0]
        if all(position == first for position in positions):
            self.keys[layer][:n, :, first] = keys
            self.values[layer][:n, :, first] = values
            return
        for row, position in enumerate(positions):
            self.keys[layer][row, :, position] = keys[row]
            self.values[layer][row, :, position] = values[row]
