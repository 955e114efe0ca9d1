"""Model and optimizer as files and back: safetensors written piece by piece, read tensor by tensor.

Optimizer state goes by parameter name (`<parameter>.<entry>`), so that it survives any change of order or grouping.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from job.checkpoint.files import MODEL, OPTIMIZER
from job.checkpoint.verify import Rejected
from job.infra.device import memory_errors
from job.infra.object_store import Content

_ENTRIES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})  # of AdamW, of Muon
_CHUNK = 1 << 18  # numbers looked at together: what is written about them stays in the cache
Read = Callable[[str], Tensor | None]  # name -> the stored tensor; none on a rank that is given it
Place = Callable[[Tensor, Tensor | None], None]  # puts the second into the first
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}
_STORED = {name: dtype for dtype, name in _DTYPES.items()}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, shared ones once; not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state by `<parameter>.<entry>`; not copied. Empty before the first update."""
    return {
        f"{name}.{entry}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the host tensors that hold an infinity or a NaN; on one core, so that training keeps the others."""
    return [name for name, tensor in tensors.items() if not all(map(_finite, torch.split(tensor.reshape(-1), _CHUNK)))]


def _finite(values: Tensor) -> bool:
    if values.dtype == torch.bfloat16:  # numpy lacks it; these bits are all set in what is not finite
        bits = values.view(torch.int16).numpy()
        return not ((bits & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(values.numpy()).all())


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Content:
    """A safetensors file of contiguous host tensors, in pieces: the header, then each tensor's own memory."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    bodies = [_bytes(tensor) for _, tensor in sorted(tensors.items()) if tensor.nbytes]
    return [len(text).to_bytes(8, "little") + text, *bodies]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


class StoredTensors:
    """The tensors of one kind in a checkpoint's folder, in the file of one rank or of several; read when asked.

    Raises:
        Rejected: A file is no safetensors file, or two hold the same name.
        MemoryError: There is no room to open or read one.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self._files: dict[str, Any] = {}
        stem, _, ending = kind.partition(".")
        for path in sorted([*folder.glob(kind), *folder.glob(f"{stem}-*.{ending}")]):
            with self._rejecting(path.name):
                stored = safe_open(path, framework="pt", device="cpu")
                names: list[str] = list(stored.keys())  # type: ignore[no-untyped-call]
            if twice := self._files.keys() & names:
                raise Rejected("format", f"{path.name}: {min(twice)} is in another file too")
            self._files |= dict.fromkeys(names, stored)
        if not list(folder.glob(f"{stem}*.{ending}")):
            raise Rejected("missing", f"{kind} is missing")

    @property
    def names(self) -> AbstractSet[str]:
        """Names of all tensors."""
        return self._files.keys()

    def fit(self, name: str) -> tuple[torch.dtype | None, tuple[int, ...]]:
        """Type and shape of a tensor; None for a type that is never stored."""
        with self._rejecting(name):
            found = self._files[name].get_slice(name)
            return _STORED.get(found.get_dtype()), tuple(found.get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor."""
        with self._rejecting(name):
            found: Tensor = self._files[name].get_tensor(name)
            return found

    @contextmanager
    def _rejecting(self, what: str) -> Iterator[None]:
        try:
            with memory_errors():
                yield
        except (SafetensorError, OSError) as error:
            raise Rejected("format", f"{self.kind}: {what}: {error}") from error


def part_name(kind: str, rank: int, world_size: int) -> str:
    """The file of a rank: `model.safetensors` of a process alone, `model-3.safetensors` of rank 3 of several."""
    return kind if world_size == 1 else kind.replace(".", f"-{rank}.", 1)


def require_model(stored: StoredTensors, model: nn.Module) -> None:
    """Rejected when the stored parameters are not the model's."""
    own = model_tensors(model)
    for name in sorted(stored.names):
        dtype, shape = stored.fit(name)
        if name not in own or own[name].shape != shape or own[name].dtype != dtype:
            wanted = f"{own[name].dtype} {list(own[name].shape)}" if name in own else "no such parameter"
            raise Rejected("shape", f"{MODEL}: {name} is {dtype} {list(shape)}, the model has {wanted}")
    if missing := sorted(own.keys() - stored.names):
        raise Rejected("shape", f"{MODEL} lacks {', '.join(missing[:5])}")


def require_optimizer(stored: StoredTensors, model: nn.Module) -> None:
    """Rejected when the stored state is not that of an optimizer of the model: all of it or none."""
    parameters = dict(model.named_parameters())
    entries: dict[str, set[str]] = {name: set() for name in parameters}
    for full_name in sorted(stored.names):
        name, _, entry = full_name.rpartition(".")
        parameter = parameters.get(name)
        fitting = ((), torch.float32) if parameter is None or entry == "step" else (parameter.shape, parameter.dtype)
        dtype, shape = stored.fit(full_name)
        if parameter is None or (shape, dtype) != fitting:
            wrong = f"{full_name} is {dtype} {list(shape)} and fits no parameter"
            raise Rejected("shape", f"{OPTIMIZER}: {wrong}")
        entries[name].add(entry)
    if any(entries.values()) and (
        unfit := [f"{name}.{entry}" for name, own in entries.items() for entry in _unfit(own)]
    ):
        raise Rejected("shape", f"{OPTIMIZER} lacks, or has in vain, {', '.join(unfit[:5])}")


def _unfit(own: set[str]) -> list[str]:
    """Entries of a parameter that make its state none of a known optimizer: too many or too few."""
    return min((sorted(own ^ whole) for whole in _ENTRIES), key=len)


def fill_model(model: nn.Module, read: Read, place: Place) -> None:
    """Put what `read` has for each parameter into it."""
    for name, parameter in model_tensors(model).items():
        place(parameter, read(name))


def fill_optimizer(
    names: Iterable[str], model: nn.Module, optimizer: torch.optim.Optimizer, read: Read, place: Place
) -> None:
    """Make what `read` has under these names the optimizer's whole state."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()  # a checkpoint that was rejected may have left its own
    for full_name in names:
        name, _, entry = full_name.rpartition(".")
        parameter = parameters[name].detach()
        shapeless = torch.empty((), dtype=torch.float32, device=parameter.device)
        state = shapeless if entry == "step" else torch.empty_like(parameter)
        place(state, read(full_name))
        optimizer.state[parameters[name]][entry] = state


def load_model(folder: Path, model: nn.Module) -> None:
    """Copy the stored parameters into `model`, one at a time. Raises Rejected when they do not fit it."""
    stored = StoredTensors(folder, MODEL)
    require_model(stored, model)
    fill_model(model, stored.read, copy_into)


def copy_into(target: Tensor, source: Tensor | None) -> None:
    """Where one process has everything."""
    assert source is not None
    target.copy_(source)
