"""The `ladder` command: Baby GPT's road, every rung trained alike with several seeds, as a table, a plot and a page."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import structlog

from job.config import Config, identity_digest, plain
from job.config_file import load_config
from job.data.cache import digest, read_json, write_json
from job.data.order import Order
from job.data.token_files import require_windows
from job.errors import DataError
from job.infra.cores import cores
from job.infra.device import choose_numerics
from job.infra.environment import code_facts
from job.infra.object_store import folder_errors
from job.infra.progress import Progress
from job.model.ladder import NAMES, RUNGS
from job.report.ladder_page import write_page
from job.report.ladder_plot import plot_ladder
from job.report.ladder_table import Row, Summary
from job.training.rungs import Climb, Reached
from job.training.side_by_side import climb_all
from job.training.text import Text, read_text

SCALED_UP = NAMES[-1]
_STEPS_SHARE = 0.15  # of the road's steps, for the rung that is scaled up on a CPU

log = structlog.get_logger(__name__)


def ladder(
    config: Config,
    seeds: int,
    processes: int | None,
    folder: Path | None,
    advance: Callable[[], None],
    progress: Progress,
) -> tuple[Summary, Path]:
    """Train what is not there yet and write the page; returns the table and the folder.

    Args:
        config: Shape, text, optimizer and length of every rung but the last; `scaled_up` makes that one's.
        seeds: How many, from the config's own on.
        processes: Models trained at a time; unset: one a core.
        folder: Where the page and each model's figures go; unset: one named after the settings.

    Raises:
        DataError: The text is too short for the longest context.
        ConfigError, AccessError, StorageError: A setting has no meaning here, or the folder cannot be written to.
    """
    small, large = on_the_road(config), scaled_up(config)
    choose_numerics(large.runtime, None)  # a device that is not there is told now
    folder = folder or Path("runs") / f"ladder-{_digest_of(small, large)[:8]}"
    with folder_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    text = read_text(small, progress.phase, lambda *_: advance(), shown=progress)
    tasks = list(plan(small, large, text, seeds))
    done = [found for task in tasks if (found := _stored(folder, task))]
    missing = [task for task in tasks if not any((one.rung, one.seed) == (task.rung, task.seed) for one in done)]
    if done:
        log.info("models trained before are taken from the folder", models=len(done), folder=str(folder))
    progress.phase("training", len(tasks), "models")
    progress.update(len(done))
    for reached in climb_all(missing[::-1], processes or _processes(large), advance):
        task = next(task for task in missing if (task.rung, task.seed) == (reached.rung, reached.seed))
        write_json(_place(folder, task), reached.plain())
        done.append(reached)
        progress.update(len(done))
        log.info("rung trained", **{name: value for name, value in reached.plain().items() if name != "sample"})
    summary = Summary(rows=_rows(done), about=_about(small, large, text, seeds))
    _write(folder, summary)
    return summary, folder


def on_the_road(config: Config) -> Config:
    """What all rungs but the last are trained with: on a CPU and by one thread, unless something else was asked for."""
    device = "cpu" if config.runtime.device == "auto" else config.runtime.device
    return replace(config, runtime=replace(config.runtime, device=device, threads=config.runtime.threads or 1))


def scaled_up(config: Config) -> Config:
    """What the last rung is trained with: Baby GPT's GPU column where there is a GPU.

    Elsewhere twice the layers and heads, four times the width and the context, two fifths of the learning rate and 15
    of 100 steps: from Baby GPT's CPU column, what two cores train with three seeds in about a minute.
    """
    config = replace(config, runtime=replace(config.runtime, threads=config.runtime.threads or 1))
    if choose_numerics(config.runtime, None).device != "cpu":
        column = load_config("baby-gpu").config
        return replace(config, model=column.model, optimizer=column.optimizer, training=column.training)
    model, optimizer, training = config.model, config.optimizer, config.training
    steps = None if training.max_steps is None else max(1, round(_STEPS_SHARE * training.max_steps))
    epochs = None if training.epochs is None else _STEPS_SHARE * training.epochs
    return replace(
        config,
        model=replace(
            model,
            n_layer=2 * model.n_layer,
            n_head=2 * model.n_head,
            n_embd=4 * model.n_embd,
            head_size=None if model.head_size is None else 2 * model.head_size,
            context_length=4 * model.context_length,
        ),
        optimizer=replace(
            optimizer,
            learning_rate=0.4 * optimizer.learning_rate,
            min_learning_rate=0.4 * optimizer.min_learning_rate,
        ),
        training=replace(training, max_steps=steps, epochs=epochs),
    )


def plan(small: Config, large: Config, text: Text, seeds: int) -> Iterator[Climb]:
    """Every rung with every seed, in the order of the road.

    Raises:
        DataError: There is no validation split, or the text has no window of the longest context.
        ConfigError: The config does not say how many steps to train.
    """
    if small.data.split[1] == 0:
        raise DataError(f"data.split={list(small.data.split)} leaves no validation text to measure the rungs on")
    require_windows(text.files, small.data.split, large.model.context_length)
    for name, number in product(NAMES, range(seeds)):
        config = large if name == SCALED_UP else small
        order = Order(
            config.data.order, text.files.train.tokens, config.model.context_length, config.window_stride, config.seed
        )
        task = Climb(
            rung=name,
            config=config,
            text=replace(text, order=order),
            seed=config.seed + number,
            sampled=number == 0,
        )
        assert task.steps
        yield task


def _processes(config: Config) -> int:
    return max(1, cores() // (config.runtime.threads or 1))


def _settings(config: Config) -> dict[str, Any]:
    """What decides a model's figures."""
    values = plain(config)
    return {name: values[name] for name in ("seed", "model", "data", "optimizer", "training")}


def _digest_of(*configs: Config) -> str:
    return identity_digest({str(number): _settings(config) for number, config in enumerate(configs)})


def _place(folder: Path, task: Climb) -> Path:
    """Where a model's figures are kept: under the name of all that decides them, so that others are never mixed in."""
    facts = [_settings(task.config), task.text.files.fingerprint, code_facts()["packages"], task.sampled]
    return folder / "models" / f"{task.rung.replace(' ', '-')}-{task.seed}-{digest(facts)[:12]}.json"


def _stored(folder: Path, task: Climb) -> Reached | None:
    """The figures of a model that was trained before; None when there are none, or they cannot be read."""
    try:
        return Reached(**read_json(_place(folder, task)))
    except TypeError:
        return None


def _rows(done: Sequence[Reached]) -> list[Row]:
    """A row a rung, seeds in their order."""
    rows = []
    for rung in RUNGS:
        own = sorted((one for one in done if one.rung == rung.name), key=lambda one: one.seed)
        rows.append(
            Row(
                name=rung.name,
                new=rung.new,
                purpose=rung.purpose,
                parameters=own[0].parameters,
                steps=own[0].steps,
                device=own[0].device,
                train_losses=tuple(one.train_loss for one in own),
                val_losses=tuple(one.val_loss for one in own),
                seconds=tuple(one.seconds for one in own),
                sample=own[0].sample,
            )
        )
    return rows


def _about(small: Config, large: Config, text: Text, seeds: int) -> dict[str, Any]:
    return {
        "corpus": [file.uri for file in text.corpus.files][:10],
        "fingerprint": text.corpus.fingerprint,
        "vocabulary": text.tokenizer.vocab_size,
        "tokens": {split.name: split.tokens for split in text.files.splits},
        "seeds": [small.seed + number for number in range(seeds)],
        "settings": {"road": _settings(small), "scaled up": _settings(large)},
        "code": code_facts(),
    }


def _write(folder: Path, summary: Summary) -> None:
    facts = json.loads(json.dumps(summary.plain()), parse_constant=lambda _: None)  # JSON has no NaN
    with folder_errors(f"write {folder}"):
        picture = plot_ladder(summary)
        for name, content in (
            ("ladder.json", (json.dumps(facts, indent=1) + "\n").encode()),
            ("ladder.png", picture.png),
            ("ladder.html", write_page(summary, picture)),
        ):
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)
