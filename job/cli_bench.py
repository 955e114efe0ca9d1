"""The command that measures this machine: parse, call, print."""

import itertools
from pathlib import Path

import click

from job.cli_options import config_options, json_option, print_json, resolve
from job.infra.signals import StopSignal

PARTS = ("training", "data", "checkpoint", "generation")


@click.command()
@config_options
@click.option(
    "--grid", "axes", multiple=True, metavar="KEY=A,B,C", help="Measure training with each value; repeatable: with all."
)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this; repeatable.")
@click.option("--seconds", type=click.FloatRange(min=0), default=10.0, show_default=True, help="For each training.")
@json_option
def bench(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    axes: tuple[str, ...],
    parts: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """How fast this machine trains, reads text, saves and generates.

    Training is measured on random tokens, each point of a grid in a fresh process. MFU is the share of the best rate of
    large matrix products, measured in the same process, that the model's own products come to.

    \b
    gpt-job bench
    gpt-job bench --preset verdict --part training --grid runtime.precision=fp32,bf16 --grid training.batch_size=2,4
    """
    base = resolve(preset, path, overrides)
    points = [(dict(each), resolve(preset, path, (*overrides, *map("=".join, each))).config) for each in _grid(axes)]
    stop = StopSignal(base.config.runtime.grace_seconds).install()
    from job.bench.run import bench as run  # noqa: PLC0415 - torch loads only now
    from job.bench.text import bench_lines  # noqa: PLC0415

    found = run(points, parts or PARTS, seconds, stop.check)
    if as_json:
        print_json(found)
        return
    for line in bench_lines(found):
        click.echo(line)


def _grid(axes: tuple[str, ...]) -> list[tuple[tuple[str, str], ...]]:
    """Every combination of one value of each axis."""
    lists = []
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not (key and equals and values):
            raise click.BadParameter(f"{axis!r} is not KEY=A,B,C", param_hint="--grid")
        lists.append([(key, value) for value in values.split(",")])
    return list(itertools.product(*lists))
