"""What a run computes with: settled once for its config, its machines and what it computed with before."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from job.config import Config, plain
from job.data.cache import cache_folder
from job.errors import ConfigError
from job.infra.allocator import keep_freed_memory
from job.infra.compiled_code import TOLD, CompiledCode
from job.infra.compiler import compiler_identity, settle_compiling
from job.infra.device import Numerics, OnCpu, choose_numerics, gpu_name, take_own_gpu
from job.infra.environment import code_facts, instruction_set
from job.infra.object_store import ObjectStore
from job.infra.place import Place
from job.infra.ranks import ALONE, Ranks
from job.model.projection import has_bf16_products
from job.training.agreement import agree

_WIDE_ENOUGH = 128  # channels; measured from there on: at 128 a step takes 0.75 of fp32's time, at 768 half

_WORTH_SHARING = 1 << 15  # numbers; below, two threads take 1.2 to 1.4 times as long as one


def settle_numerics(
    config: Config, stored: Mapping[str, Any] | None, ranks: Ranks = ALONE, code: CompiledCode | None = None
) -> Numerics:
    """Numerics that every rank can have, and the process made ready for them.

    Args:
        stored: Numerics of the checkpoint that is continued.
        code: Where compiled code is kept, if not on this machine alone.

    Raises:
        ConfigError: What was asked for, or used before, is not to be had here, or not together.
    """
    numerics = own_numerics(config, stored, ranks.place, code)
    if numerics.device == "cpu":
        keep_freed_memory()
    return numerics if ranks.place.world_size == 1 else agree(numerics, ranks)


def own_numerics(
    config: Config, stored: Mapping[str, Any] | None, place: Place, code: CompiledCode | None = None
) -> Numerics:
    """The best that this machine has for one of the ranks; raises as `settle_numerics` does."""
    numerics = choose_numerics(config.runtime, stored, place, on_cpu=best_on_cpu(config, place.world_size))
    if numerics.parallel == "fsdp" and config.optimizer.name == "muon":
        raise ConfigError("runtime.parallel='fsdp' cuts the matrices that Muon needs whole: take runtime.parallel=ddp")
    if config.runtime.cuda_graphs and (reason := _no_graphs(config, numerics)):
        raise ConfigError(f"runtime.cuda_graphs=true needs {reason}")
    take_own_gpu(numerics, place)
    before = bool((stored or {}).get("compile"))
    return settle_compiling(numerics, config.runtime, code or compiled_code(config), before)


def _no_graphs(config: Config, numerics: Numerics) -> str | None:
    """What keeps a pass from being one CUDA graph, whose gradients lie where those of the next pass will."""
    training = config.training
    if training.rows_per_pass < training.batch_size:
        return (
            f"steps of one pass: training.micro_batch_size={training.micro_batch_size} cuts "
            f"training.batch_size={training.batch_size} into several"
        )
    if numerics.world_size > 1:
        return f"one process, and there are {numerics.world_size}"
    return None if numerics.compile and numerics.device == "cuda" else "a GPU, and a model that is compiled for it"


def compiled_code(config: Config, store: ObjectStore | None = None) -> CompiledCode:
    """Where code that is compiled for this run is kept, on this machine and in `store`."""
    facts = code_facts()
    purpose = {
        "code": [facts["git"], facts["image"], facts["python"], facts["packages"]],
        "libraries": [platform.libc_ver(), compiler_identity()],
        "processor": [instruction_set(), gpu_name() if torch.cuda.is_available() else None],
        "run": [plain(config)["model"], config.data.tokenizer, config.training.rows_per_pass, config.runtime.precision],
    }
    return CompiledCode(Path(TOLD) if TOLD else cache_folder(config.data) / "compiled", purpose, store)


def best_on_cpu(config: Config, world_size: int = 1) -> OnCpu:
    """What trains the config's model fastest on a CPU, in one of so many processes.

    bf16 products with fp32 weights where the processor multiplies in bf16 and the model is wide. One thread where a
    pass is so small that others would only be waited for: torch cuts nothing into parts of less than 32,768 numbers.
    """
    return OnCpu(
        precision="bf16" if config.model.n_embd >= _WIDE_ENOUGH and has_bf16_products() else "fp32",
        threads=1 if _numbers(config, world_size) < _WORTH_SHARING else None,
    )


def may_replay(config: Config, numerics: Numerics) -> bool:
    """Whether passes are so small that calling costs more than computing, and are plain enough to be recorded."""
    plain = numerics.device == "cpu" and numerics.precision == "fp32" and not numerics.compile
    return plain and numerics.world_size == 1 and _numbers(config) < _WORTH_SHARING


def _numbers(config: Config, world_size: int = 1) -> int:
    """Of one activation of a pass."""
    _, rows = config.training.rows_of_a_rank(world_size)
    return rows * config.model.context_length * config.model.n_embd
