"""Model and optimizer as files and back: safetensors written piece by piece, read tensor by tensor.

Optimizer state goes by parameter name (`<parameter>.<entry>`), so that it survives any change of order or grouping.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from job.checkpoint.verify import Rejected
from job.infra.object_store import Content

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_ENTRIES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})  # of AdamW, of Muon
_CHUNK = 1 << 18  # numbers looked at together: what is written about them stays in the cache
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}


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


def load_model(folder: Path, model: nn.Module) -> None:
    """Copy the stored parameters into `model`, one at a time. Raises Rejected when they do not fit it."""
    own = model_tensors(model)
    found = set()
    for name, tensor in _read(folder / MODEL):
        if name not in own or own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            wanted = f"{own[name].dtype} {list(own[name].shape)}" if name in own else "no such parameter"
            raise Rejected("shape", f"{MODEL}: {name} is {tensor.dtype} {list(tensor.shape)}, the model has {wanted}")
        own[name].copy_(tensor)
        found.add(name)
    if missing := sorted(own.keys() - found):
        raise Rejected("shape", f"{MODEL} lacks {', '.join(missing[:5])}")


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the stored state into `optimizer`, and nothing else. Raises Rejected when it does not fit the model."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()  # a checkpoint that was rejected may have left its own
    for full_name, tensor in _read(folder / OPTIMIZER):
        name, _, entry = full_name.rpartition(".")
        parameter = parameters.get(name)
        fitting = ((), torch.float32) if parameter is None or entry == "step" else (parameter.shape, parameter.dtype)
        if parameter is None or (tensor.shape, tensor.dtype) != fitting:
            wrong = f"{full_name} is {tensor.dtype} {list(tensor.shape)} and fits no parameter"
            raise Rejected("shape", f"{OPTIMIZER}: {wrong}")
        optimizer.state[parameter][entry] = tensor.to(parameter.device, copy=True)
    entries = {name: set(optimizer.state.get(parameter, ())) for name, parameter in parameters.items()}
    if any(entries.values()) and (
        unfit := [f"{name}.{entry}" for name, own in entries.items() for entry in _unfit(own)]
    ):
        raise Rejected("shape", f"{OPTIMIZER} lacks, or has in vain, {', '.join(unfit[:5])}")


def _unfit(own: set[str]) -> list[str]:
    """Entries of a parameter that make its state none of a known optimizer: too many or too few."""
    return min((sorted(own ^ whole) for whole in _ENTRIES), key=len)


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, stored.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise Rejected("format", f"{path.name}: {error}") from error
