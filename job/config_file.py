"""Presets, TOML files, environment and flags -> one Config that knows where each value came from.

Later layers win: preset, file, environment, `--set`. Every problem of every layer is reported at once.
"""

import difflib
import json
import platform
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from job.config import SECTIONS, Config, identity, identity_digest, plain
from job.errors import ConfigError

DEFAULT_PRESET = "quickstart"

# What the tutorials, nanoGPT and others call a setting.
CALLED_HERE = {
    "d_model": "model.n_embd",
    "emb_dim": "model.n_embd",
    "hidden_size": "model.n_embd",
    "n_heads": "model.n_head",
    "num_heads": "model.n_head",
    "h": "model.n_head",
    "n_layers": "model.n_layer",
    "num_layers": "model.n_layer",
    "nx": "model.n_layer",
    "d_k": "model.head_size",
    "head_dim": "model.head_size",
    "drop_rate": "model.dropout",
    "dropout_rate": "model.dropout",
    "block_size": "model.context_length",
    "n_ctx": "model.context_length",
    "n_positions": "model.context_length",
    "seq_len": "model.context_length",
    "max_length": "model.context_length",
    "lr": "optimizer.learning_rate",
    "lr_rate": "optimizer.learning_rate",
    "max_lr": "optimizer.learning_rate",
    "min_lr": "optimizer.min_learning_rate",
    "initial_lr": "optimizer.initial_learning_rate",
    "warmup_iters": "optimizer.warmup_steps",
    "grad_clip": "optimizer.clip_norm",
    "decay_lr": "optimizer.schedule",
    "num_iter": "training.max_steps",
    "num_iters": "training.max_steps",
    "max_iters": "training.max_steps",
    "lr_decay_iters": "training.max_steps",
    "num_epochs": "training.epochs",
    "n_epochs": "training.epochs",
    "eval_interval": "training.eval_every",
    "eval_freq": "training.eval_every",
    "eval_iter": "training.eval_batches",
    "eval_iters": "training.eval_batches",
    "start_context": "training.sample_prompt",
    "device_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "save_interval": "checkpoint.every",
    "save_every": "checkpoint.every",
    "log_interval": "observe.log_every",
    "dataset": "data.corpus",
    "num_workers": "data.workers",
    "dtype": "runtime.precision",
    "out_dir": "run_uri",
    "run_dir": "run_uri",
}

_TYPES: dict[str, Any] = {
    "run_uri": str,
    "seed": int,
    **{
        f"{section}.{entry.name}": hint
        for section, cls in SECTIONS.items()
        for entry, hint in ((entry, get_type_hints(cls)[entry.name]) for entry in fields(cls))
    },
}


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A config and, for each setting by its dotted name, where its value came from."""

    config: Config
    preset: str
    sources: Mapping[str, str]


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files("job.presets").iterdir())


def load_config(
    preset: str | None = None,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = types.MappingProxyType({}),
) -> ResolvedConfig:
    """The config of a run, from all layers.

    Args:
        preset: Name of a preset; unset: `$GPT_JOB_PRESET`, else quickstart.
        path: A TOML file; unset: `$GPT_JOB_CONFIG`, else none.
        overrides: Assignments `section.key=value`, which win over everything.
        environ: Where `GPT_JOB_*` are looked up; `GPT_JOB_SET` holds one assignment a line.

    Raises:
        ConfigError: Holds every problem found, each with the layer it is in.
    """
    preset = preset or environ.get("GPT_JOB_PRESET") or DEFAULT_PRESET
    path = path or (Path(environ["GPT_JOB_CONFIG"]) if environ.get("GPT_JOB_CONFIG") else None)
    lines = [line.strip() for line in environ.get("GPT_JOB_SET", "").splitlines() if line.strip()]
    problems: list[str] = []
    layers: list[tuple[str, Mapping[str, Any]]] = [(f"preset {preset}", _preset_values(preset, problems))]
    if path is not None:
        layers.append((f"file {path}", _file_values(path, problems)))
    layers.append(("environment", _assignments(lines, problems)))
    layers.append(("--set", _assignments(overrides, problems)))
    return _resolve(preset, layers, problems)


def _resolve(preset: str, layers: Iterable[tuple[str, Mapping[str, Any]]], problems: list[str]) -> ResolvedConfig:
    values: dict[str, Any] = {}
    sources = dict.fromkeys(_TYPES, "default")
    for source, layer in layers:
        for key, raw in layer.items():
            if key not in _TYPES:
                problems.append(f"unknown setting {key} ({source}){_hint(key)}")
                continue
            try:
                values[key] = _coerce(raw, _TYPES[key])
            except ValueError as error:
                problems.append(f"{key}={_shown(raw)} ({source}): expected {error}")
                continue
            sources[key] = source
    config = _build(values, problems)
    if problems or config is None:
        raise ConfigError(*problems)
    if "run_uri" not in values:
        config = replace(config, run_uri=default_run_uri(preset, config))
        sources["run_uri"] = "made from the preset's name and the identity settings"
    return ResolvedConfig(config, preset, sources)


def _build(values: Mapping[str, Any], problems: list[str]) -> Config | None:
    """The Config of `values`; problems of every section are added to `problems`."""
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{section}.")}
        try:
            sections[section] = cls(**own)
        except ConfigError as error:
            problems.extend(error.problems)
    if len(sections) < len(SECTIONS):
        return None
    top = {"run_uri": "unset", **{key: value for key, value in values.items() if "." not in key}}
    try:
        return Config(**top, **sections)
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def stored_config(values: Mapping[str, Any]) -> Config:
    """The config of a record, from `plain(config)`; settings that this version does not know are passed over."""
    known = {key: _coerce(value, _TYPES[key]) for key, value in _flat(values).items() if key in _TYPES}
    problems: list[str] = []
    config = _build(known, problems)
    if config is None:
        raise ConfigError(*problems)
    return config


def default_run_uri(preset: str, config: Config) -> str:
    """`runs/<preset>-<8 hex>`: the same identity settings continue a run, others start their own."""
    facts = identity(config)
    if "builtin:python-docs" in config.data.corpus:
        facts["python"] = platform.python_version()  # the text differs between versions
    return f"runs/{preset}-{identity_digest(facts)[:8]}"


def _preset_values(preset: str, problems: list[str]) -> dict[str, Any]:
    if preset not in preset_names():
        near = difflib.get_close_matches(preset, preset_names(), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"unknown preset {preset}{meant} (presets: {', '.join(preset_names())})")
        preset = DEFAULT_PRESET  # so that the other layers are checked too
    return _flat(tomllib.loads((resources.files("job.presets") / f"{preset}.toml").read_text()))


def _file_values(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return _flat(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        problems.append(f"config file {path}: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"config file {path} is not TOML: {error}")
    return {}


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """{"model": {"n_layer": 2}, "seed": 1} -> {"model.n_layer": 2, "seed": 1}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


class _Text(str):
    """A value typed on a command line: its text, and what TOML makes of it."""

    __slots__ = ()

    @property
    def toml(self) -> Any:
        try:
            return tomllib.loads(f"value = {self}")["value"]
        except tomllib.TOMLDecodeError:
            return str(self)


def _assignments(lines: Iterable[str], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for line in lines:
        key, equals, text = line.partition("=")
        if not equals:
            problems.append(f"{line!r} is not an assignment: expected section.key=value")
            continue
        values[key.strip()] = _Text(text.strip())
    return values


def _coerce(raw: Any, hint: Any) -> Any:
    """`raw` as the type `hint`; ValueError names what was expected."""
    if isinstance(raw, _Text):
        try:
            return _coerce(raw.toml, hint)
        except ValueError:
            return _coerce(str(raw), hint)
    for arm in sorted(_arms(hint), key=lambda arm: arm is not types.NoneType):  # "none" is no text where none is meant
        found, value = _as(raw, arm)
        if found:
            return value
    raise ValueError(expected(hint))


def expected(hint: Any) -> str:
    """What a setting of the type `hint` takes, in words."""
    return " or ".join(_named(arm) for arm in _arms(hint))


def _arms(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _as(raw: Any, arm: Any) -> tuple[bool, Any]:
    """Whether `raw` is a value of the plain type `arm`, and that value."""
    number = isinstance(raw, int | float) and not isinstance(raw, bool)
    if arm is types.NoneType:
        return raw is None or raw == "none", None
    if get_origin(arm) is Literal:
        return raw in get_args(arm) and isinstance(raw, str), raw
    if get_origin(arm) is tuple:
        items = [_as(item, get_args(arm)[0]) for item in (raw if isinstance(raw, list) else [raw])]
        return all(found for found, _ in items), tuple(value for _, value in items)
    if arm is int and number and float(raw).is_integer():
        return True, int(raw)
    if arm is float and number and abs(raw) < float("inf"):
        return True, float(raw)
    return arm in (str, bool) and isinstance(raw, arm), raw


def _named(arm: Any) -> str:
    if get_origin(arm) is Literal:
        return ", ".join(map(repr, get_args(arm)))
    if get_origin(arm) is tuple:
        return f"a list of {'numbers' if get_args(arm)[0] is float else 'texts'}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "'none'"}
    return names[arm]


def _shown(raw: Any) -> str:
    return str(raw) if isinstance(raw, _Text) else json.dumps(raw, default=str)


def _hint(key: str) -> str:
    """What an unknown key was probably meant to be."""
    word = key.rpartition(".")[2]
    if called := CALLED_HERE.get(word.lower()):
        return f": {word} is called {called} here"
    if same := [known for known in _TYPES if known.rpartition(".")[2] == word]:
        return f": did you mean {' or '.join(same)}?"
    near = difflib.get_close_matches(key, _TYPES, n=1, cutoff=0.6)
    if not near:
        words = difflib.get_close_matches(word, [known.rpartition(".")[2] for known in _TYPES], n=1, cutoff=0.6)
        near = [known for known in _TYPES if words and known.rpartition(".")[2] == words[0]][:1]
    return f": did you mean {near[0]}?" if near else ""


def render_toml(resolved: ResolvedConfig) -> str:
    """The config as TOML that can be read back, each value with where it came from."""
    values = _flat(plain(resolved.config))
    lines: list[str] = []
    section = ""
    for key in _TYPES:
        head, _, name = key.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        shown = '"none"' if values[key] is None else json.dumps(values[key], ensure_ascii=False)
        lines.append(f"{name} = {shown}  # {resolved.sources[key]}")
    return "\n".join(lines) + "\n"
