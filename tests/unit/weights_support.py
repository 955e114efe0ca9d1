"""What the tests of weights share: small models, and folders of them as others write them."""

import json

import torch
from safetensors.torch import save_file

from job.config import ModelConfig
from job.model import names
from job.model.gpt import GPT
from job.model.shapes import Shape, to_huggingface
from job.model.weights import find_weights, load_weights

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": 16}


def model(vocab_size=23, seed=0, **settings):
    """A model with random numbers everywhere, biases and norms too."""
    torch.manual_seed(seed)
    found = GPT(ModelConfig(**{**SMALL, **settings}), vocab_size)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return found.eval()


def parameters(found):
    return {name: parameter.detach() for name, parameter in found.named_parameters()}


def hugging_tensors(found, bare=False):
    """Tensors as GPT2LMHeadModel has them; `bare`, as GPT2Model does, without a prefix."""
    there = names.to_huggingface(parameters(found))
    return {name.removeprefix("transformer.") if bare else name: tensor for name, tensor in there.items()}


def write_huggingface(folder, found, tensors=None, files=None, **config):
    """A folder in Hugging Face's layout; several files when `files` says which tensor goes where."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hugging_tensors(found) if tensors is None else tensors
    facts = {**to_huggingface(Shape(found.config, found.vocab_size), None), **config}
    (folder / "config.json").write_text(json.dumps(facts))
    if files is None:
        save_file(tensors, folder / "model.safetensors")
        return folder
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files.get(name) == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def openai_variables(found):
    """Variables as OpenAI's checkpoints have them."""
    there = {}
    for name, parameter in parameters(found).items():
        path, _, end = name.rpartition(".")
        path = path.replace("h.", "h", 1) if path.startswith("h.") else path
        matrix = ".c_" in path and end == "weight"
        kind = {"weight": "/g" if "ln_" in path else "/w" if matrix else "", "bias": "/b"}[end]
        tensor = parameter.T[None].contiguous() if matrix else parameter
        there["model/" + path.replace(".", "/") + kind] = tensor.numpy()
    return there


def openai_sizes(found):
    """What `hparams.json` says."""
    sizes = {name: getattr(found.config, name) for name in ("n_layer", "n_head", "n_embd")}
    return sizes | {"n_ctx": found.config.context_length, "n_vocab": found.vocab_size}


def listed(folder):
    """The files of a folder by name."""
    return {path.name: path for path in folder.iterdir() if path.is_file()}


def loaded(folder):
    return load_weights(find_weights(listed(folder), str(folder)))


def same(one, other):
    """Whether two models have the same parameters, bit for bit."""
    one, other = parameters(one), parameters(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
