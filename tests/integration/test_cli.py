"""What the commands print: for people, and as JSON for everybody else."""

import json
import tomllib
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from job.cli import main
from tests.integration.command import IMPATIENT, Ending, World, two_at_a_time

SPLITS = ["train", "validation", "test"]
PROMPT = ("generate", "--prompt", "line 1", "--max-new-tokens", "20")
DRAWN = (*PROMPT, "--temperature", "0.8", "--top-k", "50", "--seed", "3")
TOO_LITTLE = ("--set", "data.corpus=words.txt", "--to", "ladder")
COMMANDS = {
    "losses": ("evaluate", "--json"),
    "losses by step": ("evaluate", "--json", "--checkpoint", "40"),
    "losses as text": ("evaluate", "--checkpoint", "best", "--split", "validation"),
    "losses of another text": ("evaluate", "--json", "--corpus", "other.txt", "--checkpoint", "40"),
    "losses of no step": ("evaluate", "--checkpoint", "7"),
    "drawn": (*DRAWN, "--json"),
    "drawn as text": DRAWN,
    "greedy": PROMPT,
    "greedy with a seed": (*PROMPT, "--seed", "9"),
    "beams and chance": (*DRAWN, "--beams", "2"),
    "prompts of a file": ("generate", "--prompts", "prompts.jsonl", "--batch", "2", "--json", "--dtype", "auto"),
    "no prompt": ("generate",),
    "report": ("report", "--json", "--to", "drawn", "--tensorboard"),
    "report of two": ("report", "--to", "drawn", "--compare", "run", "kept.jsonl"),
    "report of nothing": ("report", "--run", "nowhere"),
    "report of no log": ("report", "--run", "other.txt"),
    "report of an empty log": ("report", "--run", "empty.jsonl"),
    "report of half a line": ("report", "--run", "half.jsonl"),
    "report of a word": ("report", "run"),
    "ladder on too little": ("ladder", *TOO_LITTLE),
}


@pytest.fixture(scope="module")
def here(finished, tmp_path_factory) -> World:
    """A finished run of this module's own, and another text beside it."""
    world = finished.world.copy(tmp_path_factory.mktemp("cli"))
    (world.folder / "kept.jsonl").write_bytes((world.run / "events.jsonl").read_bytes()[:-30])
    (world.folder / "half.jsonl").write_bytes((world.run / "events.jsonl").read_bytes()[:40])
    (world.folder / "empty.jsonl").write_bytes(b"")
    (world.folder / "words.txt").write_text("too few words")
    (world.folder / "other.txt").write_text("line after line after line. " * 20)
    (world.folder / "prompts.jsonl").write_text('"line 1"\n{"prompt": "a"}\n\n"line \\u20ac"\n')
    return world


@pytest.fixture(scope="module")
def said(here) -> dict[str, Ending]:
    """How each of COMMANDS ended."""
    return two_at_a_time(lambda words: here.gpt_job(*words), COMMANDS)


def printed(here: World, *words: str) -> str:
    """What a command prints when it succeeds."""
    ending = here.gpt_job(*words)
    assert ending.code == 0, ending.stderr
    return ending.stdout


def test_evaluate_measures_every_split(said):
    """Loss, perplexity, bits per byte and tokens of each split, whole."""
    losses = json.loads(said["losses"].stdout)

    assert list(losses) == SPLITS
    assert [list(facts) for facts in losses.values()] == [["loss", "perplexity", "bits_per_byte", "tokens"]] * 3
    assert [facts["tokens"] for facts in losses.values()] == [74 * 64, 9 * 64, 9 * 64]


def test_evaluate_repeats_bit_for_bit(said):
    """The same checkpoint, named by its step, costs exactly the same in another process."""
    assert said["losses by step"].stdout == said["losses"].stdout


def test_evaluate_prints_text(said):
    """Without --json there is a line for each split that was asked for."""
    facts = json.loads(said["losses"].stdout)["validation"]

    assert said["losses as text"].stdout == (
        f"validation  loss {facts['loss']:.4f}  perplexity {facts['perplexity']:.4f}  "
        f"bits_per_byte {facts['bits_per_byte']:.4f}  tokens 576\n"
    )


def test_evaluate_measures_another_text(said):
    """--corpus measures the whole of a text that the run has never seen."""
    losses = json.loads(said["losses of another text"].stdout)

    assert {split: facts["tokens"] for split, facts in losses.items()} == {"test": 8 * 64}


def test_evaluate_knows_its_steps(said, here):
    """A step without a checkpoint is not found, and those that are there are named."""
    steps = ", ".join(map(str, here.standing()))

    assert said["losses of no step"].codes == {66}
    assert f"no checkpoint of step 7; there are {steps}" in said["losses of no step"].reason


def test_generate_gives_tokens_and_text(said):
    """One object: the prompt, its tokens, the continuation's text and tokens, and why it ended."""
    drawn = json.loads(said["drawn"].stdout)

    assert list(drawn) == ["prompt", "prompt_tokens", "text", "tokens", "finish_reason"]
    assert drawn["prompt_tokens"] == list(b"line 1")
    assert (len(drawn["tokens"]), drawn["finish_reason"]) == (20, "length")


def test_generate_prints_prompt_and_continuation(said):
    """The same seed draws the same text in another process; as text it follows the prompt."""
    drawn = json.loads(said["drawn"].stdout)

    assert said["drawn as text"].stdout == f"{drawn['prompt']}{drawn['text']}\n"


def test_generate_is_greedy_by_default(said):
    """Without a temperature the seed decides nothing."""
    assert said["greedy"].stdout == said["greedy with a seed"].stdout != said["drawn as text"].stdout


def test_generate_refuses_beams_with_chance(said):
    """A beam search draws nothing: a temperature beside it is an error and not passed over."""
    assert said["beams and chance"].codes == {78}
    assert "no --temperature, --top-k, --top-p or --repetition-penalty" in said["beams and chance"].reason


def test_generate_continues_the_prompts_of_a_file(said):
    """Each line of a file is a prompt, and each has its line of the answer, in order."""
    answers = [json.loads(line) for line in said["prompts of a file"].stdout.splitlines()]

    assert [answer["prompt"] for answer in answers] == ["line 1", "a", "line \u20ac"]
    assert [len(answer["tokens"]) for answer in answers] == [100, 100, 100]


def test_generate_wants_a_prompt(said):
    """Without a prompt there is nothing to continue, and the message says how to give one."""
    assert said["no prompt"].codes == {78}
    assert "--prompt TEXT" in said["no prompt"].reason


def test_report_says_where_the_page_is(said, here):
    """`report --json`: the page, every file, and how far the run came; all of it lies where --to says."""
    facts = json.loads(said["report"].stdout)

    assert (facts["report"], facts["step"], facts["attempts"]) == ("drawn/report.html", 40, 1)
    assert all((here.folder / file).stat().st_size > 0 for file in facts["files"])
    assert "drawn/tensorboard/events.out.tfevents.0000000000.exported" in facts["files"]


def test_report_compares(said, here):
    """Runs after --compare share a page; one of them is a log that was cut, which is said."""
    assert said["report of two"].stdout == "drawn/compare.html\n"
    assert "kept.jsonl" in (here.folder / "drawn" / "compare.html").read_text()


@pytest.mark.parametrize(
    ("case", "code", "reason"),
    [
        ("report of nothing", 66, "nowhere: no such folder (expected a run with events.jsonl in it)"),
        ("report of no log", 65, "other.txt: expected a run's events"),
        ("report of an empty log", 65, "empty.jsonl: expected a run's events, a JSON object a line with event"),
        ("report of half a line", 65, "half.jsonl: expected a run's events"),
        ("ladder on too little", 65, "context_length"),
        ("report of a word", 2, "say --run run, or --compare RUN RUN ... for several"),
    ],
)
def test_what_cannot_be_drawn_is_refused(said, case, code, reason):
    """A run that is not there, files that are no event log, too short a text and a word too many have their codes."""
    assert said[case].codes == {code}
    assert reason in said[case].reason


def test_report_of_a_run_that_cannot_be_reached(here):
    """A bucket whose server does not answer is 69, and one for which there are no credentials 77: nothing is drawn."""
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    none = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    words = ("--run", "s3://bucket/run", "--to", "unreachable")
    silent = here.gpt_job("report", *words, launcher=IMPATIENT, **nowhere, **keys)
    unknown = here.gpt_job("report", *words, launcher=IMPATIENT, **nowhere, **none)

    assert (silent.codes, unknown.codes) == ({69}, {77})
    assert "s3://bucket/run" in silent.reason
    assert not (here.folder / "unreachable").exists()


def test_checkpoints_are_listed_oldest_first(here, finished):
    """`checkpoints list --json`: a row for each checkpoint that stands, with what identifies and what protects it."""
    rows = json.loads(printed(here, "checkpoints list", "--json"))

    assert [list(row) for row in rows] == [
        ["seq", "step", "chain", "val_loss", "bytes", "objects", "pinned", "valid"]
    ] * len(rows)
    assert [row["step"] for row in rows] == here.standing()
    assert [row["pinned"] for row in rows].count(True) == 1  # the best
    assert all(row["valid"] for row in rows)
    assert rows[-1]["chain"] == finished.ending.summary["chain"]
    assert rows[-1]["val_loss"] == finished.ending.summary["val_loss"]


def test_checkpoints_are_listed_for_people(here):
    """As text: a heading and a line for each."""
    heading, *lines = printed(here, "checkpoints list").splitlines()

    assert heading.split() == ["seq", "step", "val_loss", "bytes", "objects", "pinned", "valid", "chain"]
    assert [int(line.split()[1]) for line in lines] == here.standing()


def test_prepare_counts_what_it_made(here):
    """`prepare --json`: documents, characters, bytes and tokens of all and of each split, and how they were made."""
    facts = json.loads(printed(here, "prepare", "--json"))
    splits = facts["splits"]

    assert splits["train"] == {"documents": 1, "characters": 4800, "bytes": 4800, "tokens": 4800}
    assert list(splits) == SPLITS
    assert facts["tokens"] == sum(split["tokens"] for split in splits.values())
    assert (facts["files"], facts["documents"], facts["bytes_per_token"], facts["skipped_lines"]) == (1, 1, 1.0, 0)
    assert facts["tokens_per_second"] > 0


def test_prepare_prints_text(here):
    """A line for each split."""
    assert "train       1 documents  4,800 characters  4,800 bytes  4,800 tokens" in printed(here, "prepare")


def test_config_show_says_where_values_come_from(here):
    """`config show --json`: the whole config, and the layer of each setting."""
    shown = json.loads(printed(here, "config show", "--json", "--set", "seed=7"))

    assert (shown["config"]["seed"], shown["sources"]["seed"]) == (7, "--set")
    assert shown["sources"]["model.n_layer"] == "file run.toml"


def test_config_show_can_be_read_back(here):
    """Its text is a config file: the run's own."""
    assert tomllib.loads(printed(here, "config show")) == tomllib.loads((here.folder / "run.toml").read_text())


def leaves(group: click.Group, *words: str) -> Iterator[str]:
    """Every command below `group`, as it is typed."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *words, name)
        else:
            yield " ".join((*words, name))


@pytest.mark.parametrize("command", list(leaves(main)))
def test_help_shows_an_example(command):
    """--help of every command has a line that can be typed."""
    help_text = CliRunner().invoke(main, [*command.split(), "--help"]).output

    assert f"\n  gpt-job {command} --" in help_text
