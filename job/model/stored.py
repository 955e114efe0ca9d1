"""A tensor that lies in a weights file: what is known of it before it is read, and the one way its bytes come in.

Files are read, not mapped: a file that is cut while it is read is then an error and no signal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from job.errors import DataError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Args:
        name: As the file has it.
        path: The file.
        dtype: One of DTYPES.
        start: Its first byte in the file.
        check: Raises when its bytes (n,) uint8 are not those that were written.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    check: Callable[[NDArray[np.uint8]], None] = lambda _: None

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"

    def read(self) -> Tensor:
        """The tensor itself. DataError when its bytes are not there, not those that were written, or not finite."""
        try:
            data = np.fromfile(self.path, np.uint8, self.size, offset=self.start)
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {error}") from error
        if len(data) != self.size:
            raise DataError(f"{self}: expected {self.size} bytes from byte {self.start}, got {len(data)}")
        self.check(data)
        tensor = torch.from_numpy(data).view(DTYPES[self.dtype]).view(self.shape)
        if tensor.numel() and not all(math.isfinite(float(end)) for end in tensor.aminmax()):
            raise DataError(f"{self}: has values that are not finite")
        return tensor
