"""`make docs`: the tables of README.md that come from code, written between their markers.

A table stands between two comments with its name; `tests/unit/test_docs.py` holds the page to what this writes.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import click
from prometheus_client import CollectorRegistry

from job.cli import main
from job.config_file import load_config, preset_names
from job.config_table import table_lines
from job.infra.metrics import GPU_USE, Metrics, Split, Stage
from job.serving.metrics import ServingMetrics
from job.serving.testing.figures import LATENCIES
from job.serving.testing.outcome_metrics import STATISTICS, outcome_registry

README = Path(__file__).parents[1] / "README.md"
_OWN_LABELS = {"pretrain_build_info": "a version of each package"}  # labels that depend on the machine


def commands() -> list[str]:
    """What each command does, in the first sentence of its help."""
    rows = [f"| `gpt-job {name}` | {_cell(command.get_short_help_str(300))} |" for name, command in leaves(main)]
    return ["| command | does |", "|---|---|", *rows]


def leaves(group: click.Group, *words: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, as it is typed, in the order of the help."""
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from leaves(command, *words, name)
        else:
            yield " ".join((*words, name)), command


def presets() -> list[str]:
    """What each preset is, in the first sentence of its file, and how large."""
    lines = ["| preset | is | layers x heads x width, context | a step | ends after |", "|---|---|---|---|---|"]
    for name in preset_names():
        config = load_config(name).config
        shape, training = config.model, config.training
        ends = f"{training.max_steps:,} steps" if training.max_steps else f"{training.epochs:g} epochs"
        size = f"{shape.n_layer} x {shape.n_head} x {shape.n_embd}, {shape.context_length:,}"
        tokens = f"{config.tokens_per_step:,} tokens"
        lines.append(f"| `{name}` | {_first_sentence(name)} | {size} | {tokens} | {ends} |")
    return lines


def _first_sentence(preset: str) -> str:
    text = (resources.files("job.presets") / f"{preset}.toml").read_text()
    assert tomllib.loads(text)
    comment = " ".join(line.lstrip("# ") for line in re.match(r"(?:#.*\n)+", text)[0].splitlines())
    return _cell(re.match(r".*?(?<!\d)[.](?= |$)", comment)[0].removesuffix("."))


def metrics() -> list[str]:
    """Every family that `train`, `serve` and `serve-test` export, in the words of its help."""
    lines = []
    for title, registry in registries().items():
        lines += ["", f"**{title}**:", "", "| metric | type | labels | means |", "|---|---|---|---|"]
        for family in registry.collect():
            if family.name.startswith("pretrain_"):
                name = f"{family.name}{'_total' if family.type == 'counter' else ''}"
                name += "_info" if family.type == "info" else ""
                labels = _OWN_LABELS.get(name) or _labels(family)
                lines.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return lines[1:]


def registries() -> Mapping[str, CollectorRegistry]:
    """The registries of the commands that have one, with a sample in every series."""
    training = Metrics(CollectorRegistry())
    for split in get_args(Split):
        training.evaluated(split, 1.0, 1.0)
    training.saved(dict.fromkeys(get_args(Stage), 0.0), 0, 0.0)
    training.describe({"torch": "2"}, lambda: dict.fromkeys(GPU_USE, 0.0))
    load: dict[str, Any] = {"completed": 1, "failed": 0, "output_throughput": 1.0, "request_throughput": 1.0}
    load |= {f"{statistic}_{latency}_ms": 1.0 for statistic in STATISTICS for latency in LATENCIES}
    report = {"status": "passed", "ended": 0.0, "server": {"ready_seconds": 1.0}, "checks": [], "loads": [load]}
    return {
        "`train`, on its port, in `metrics.prom` and at the Pushgateway": training.registry,
        "`serve`, on its port, beside those of the process (`process_*`)": ServingMetrics(CollectorRegistry()).registry,
        "`serve-test`, in `metrics.prom` and at the Pushgateway": outcome_registry(report),
    }


def _labels(family: Any) -> str:
    """The labels of a family with their values, which come from closed sets."""
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for name, value in sample.labels.items():
            if name != "le":
                values.setdefault(name, {})[value] = None
    return "; ".join(f"`{name}`: {', '.join(found)}" for name, found in values.items())


TABLES: Mapping[str, Callable[[], list[str]]] = {
    "commands": commands,
    "presets": presets,
    "settings": table_lines,
    "metrics": metrics,
}


def written(page: str) -> str:
    """The page with every table as it has to be."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by `make docs` -->\n", f"<!-- end of {name} -->"
        head, found_begin, rest = page.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"the markers of {name} are not in the page: {begin.strip()} ... {end}")
        page = "".join((head, begin, "\n", "\n".join(table()), "\n\n", end, tail))
    return page


def _cell(text: str) -> str:
    return text.replace("<", "\\<").replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
