"""Released and exported weights: local files -> a model, every tensor accounted for before any of them is read.

Three layouts are read: OpenAI's (a TensorFlow checkpoint and `hparams.json`), Hugging Face's (`config.json` and
safetensors, in one file or several) and our own, for models that GPT-2's format cannot hold.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from job.errors import DataError, NotFoundError
from job.model import names
from job.model.gpt import GPT, unfilled
from job.model.names import Naming
from job.model.shapes import OWN_TYPE, Shape, from_huggingface, from_openai
from job.model.stored import StoredTensor
from job.model.tensor_bundle import read_bundle
from job.tensor_file import MAX_TENSORS, DamagedTensors, read_contents

CONFIG, HPARAMS, MODEL, INDEX = "config.json", "hparams.json", "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_JSON = 8 << 20  # bytes
_SHOWN = 5  # tensors of a kind in an error
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a model, found and looked at, not read yet.

    Args:
        where: The file that lists them.
        layout: `openai`, `huggingface` or `own`.
        tensors: By the names of the file.
    """

    where: Path
    layout: str
    shape: Shape
    naming: Naming
    tensors: Mapping[str, StoredTensor]


def refuse_pickle(path: Path | str) -> DataError:
    """Why a pickled file is not read, and what to do with it."""
    return DataError(
        f"{path}: pickled weights are refused, because reading a pickle runs whatever code is in it. If you trust the "
        'file, convert it once where transformers and torch are installed: python -c "import transformers as t; '
        "t.GPT2LMHeadModel.from_pretrained('FOLDER').save_pretrained('SAFE')\" and name the folder SAFE"
    )


def find_weights(files: Mapping[str, Path], where: str) -> Weights:
    """The weights among these files of one folder.

    Args:
        files: By name.
        where: The folder, for messages.

    Raises:
        NotFoundError: There are none.
        DataError: They are pickled, damaged, or of a model that ours cannot be.
    """
    if CONFIG in files and (MODEL in files or INDEX in files):
        facts = read_object(files[CONFIG])
        own = facts.get("model_type") == OWN_TYPE
        layout, naming = ("own", names.OWN) if own else ("huggingface", names.HUGGINGFACE)
        shape = from_huggingface(facts, str(files[CONFIG]))
        tensors = _one_file(files[MODEL]) if MODEL in files else _several_files(files)
        return Weights(files[MODEL] if MODEL in files else files[INDEX], layout, shape, naming, tensors)
    indices = sorted(name for name in files if name.endswith(".index"))
    if HPARAMS in files and indices:
        index = files[indices[0] if len(indices) == 1 else _named_checkpoint(files, indices)]
        shape = from_openai(read_object(files[HPARAMS]), str(files[HPARAMS]))
        return Weights(index, "openai", shape, names.OPENAI, read_bundle(index, files))
    if pickled := sorted(name for name in files if name.endswith(PICKLED)):
        raise refuse_pickle(f"{where}/{pickled[0]}")
    raise NotFoundError(
        f"{where}: no weights here: expected {CONFIG} with {MODEL} or {INDEX}, or {HPARAMS} with a TensorFlow "
        f"checkpoint (model.ckpt.index, model.ckpt.data-...); there are {', '.join(sorted(files)[:10]) or 'no files'}"
    )


def load_weights(weights: Weights, device: torch.device | str = "cpu") -> GPT:
    """A model with these weights in evaluation mode; takes the memory of its parameters and one tensor more.

    Raises:
        DataError: A tensor is missing, left over, misshapen or damaged; the first of each kind are named.
    """
    if (layers := weights.shape.model.n_layer) > len(weights.tensors):
        raise DataError(f"{weights.where}: {len(weights.tensors)} tensors, fewer than the {layers} layers of the model")
    outline = unfilled(weights.shape.model, weights.shape.vocab_size, "meta")
    parameters = dict(outline.named_parameters())
    stored = _matched(weights, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
    twin = stored.pop(names.HEAD, None) if weights.shape.model.tie_weights else None
    model = unfilled(weights.shape.model, weights.shape.vocab_size, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.naming.restored(name, stored[name].read()))
        if twin is not None and not torch.equal(twin.read().to(model.wte.weight), model.wte.weight):
            raise DataError(f"{twin}: differs from {names.EMBEDDING}, though {CONFIG} says that the two are one")
    return model.eval()


def _matched(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """Stored tensors by our names, all that are wanted and, where the head is tied, perhaps its copy."""
    found: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name, tensor in weights.tensors.items():
        ours = weights.naming.ours(name)
        if ours is None:
            continue
        if ours in found:
            problems.append(f"{name} and {found[ours].name} are both {ours}")
        found[ours] = tensor
    tied = weights.shape.model.tie_weights
    shapes = {**wanted, names.HEAD: wanted[names.EMBEDDING]} if tied and names.HEAD in found else wanted
    if missing := sorted(shapes.keys() - found.keys()):
        problems.append(f"missing: {_some(missing)}")
    if left := sorted(found[name].name for name in found.keys() - shapes.keys()):
        problems.append(f"left over: {_some(left)}")
    misshapen = [
        f"{found[name].name}: expected {list(expected)}, got {list(found[name].shape)}"
        for name, shape in shapes.items()
        if name in found and found[name].shape != (expected := weights.naming.stored_shape(name, shape))
    ]
    if misshapen:
        problems.append(f"misshapen: {_some(misshapen)}")
    if problems:
        raise DataError(f"{weights.where}: {'; '.join(problems)}")
    return found


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _one_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name."""
    try:
        contents = read_contents(path)
    except DamagedTensors as error:
        with path.open("rb") as file:
            if file.read(4).startswith(_PICKLE_STARTS):
                raise refuse_pickle(path) from error
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    found = {}
    for name, tensor in contents.items():
        if names.HUGGINGFACE.ours(name) is None:  # a mask, which may be of any dtype
            continue
        if tensor.dtype not in _DTYPES:
            raise DataError(f"{path}: {name}: dtype {tensor.dtype}, expected one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[tensor.dtype]
        found[name] = StoredTensor(name=name, path=path, dtype=dtype, shape=tensor.shape, start=tensor.start)
    return found


def _several_files(files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """The tensors that `model.safetensors.index.json` spreads over files."""
    index = files[INDEX]
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, Mapping) or not all(isinstance(name, str) for name in placed.values()):
        raise DataError(f"{index}: weight_map is not an object of file names")
    shards = sorted(set(placed.values()))
    if len(shards) > MAX_TENSORS or (absent := [name for name in shards if name not in files]):
        raise DataError(f"{index}: names files that are not beside it: {_some(absent)}")
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in _one_file(files[shard]).items():
            if placed.get(name) != shard:
                raise DataError(f"{files[shard]}: {name} is in it, expected in {placed.get(name)} by {index.name}")
            found[name] = tensor
    if lost := sorted(name for name in placed.keys() - found.keys() if names.HUGGINGFACE.ours(name) is not None):
        raise DataError(f"{index}: missing: {_some(lost)}, not in the files that it names")
    return found


def _named_checkpoint(files: Mapping[str, Path], indices: list[str]) -> str:
    """Which of several checkpoints the file `checkpoint` means."""
    named = ""
    if "checkpoint" in files:
        first = files["checkpoint"].read_bytes()[:_MAX_JSON].decode(errors="replace").partition("\n")[0]
        named = first.removeprefix("model_checkpoint_path:").strip().strip('"').rpartition("/")[2] + ".index"
    if named not in indices:
        where = files[indices[0]].parent
        raise DataError(f"{where}: several checkpoints ({_some(indices)}), and `checkpoint` names none of them")
    return named


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file. DataError when it is something else."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, at most {_MAX_JSON} are read")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found
