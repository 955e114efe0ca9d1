"""README.md, docker/README.md and k8s/README.md: what they tell is what is there, and can be typed."""

import ast
import json
import re
import shlex
import subprocess

import click
import pytest

from job.checks.storage import _RIGHTS
from job.config_file import load_config
from tests.documents import DOCUMENTS, ELSEWHERE, ROOT, blocks, headings, inline, leaf, parse
from tests.write_docs import README, TABLES, written

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [command for block in BLOCKS for command in block.commands]
OF_JOB = [command for command in COMMANDS if command.job is not None]
OF_MAKE = [command for command in COMMANDS if command.program == "make"]
RUN_HERE = {"gpt-job", "make", "curl", "export"}  # programs that tests/integration/test_docs.py starts
LINE = 120  # characters
_LAST_OF_TWO_SCREENS = 70  # lines


def places(commands):
    return [f"{command.place} {command.text}" for command in commands]


def test_the_tables_are_current():
    """`make docs` would change nothing."""
    page = README.read_text()

    assert page == written(page)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_out_of_date_is_noticed(name):
    """A row that code no longer has would be taken out."""
    page = README.read_text()
    end = f"<!-- end of {name} -->"

    assert written(page.replace(end, f"| `gone` | | |\n{end}")) == page


@pytest.mark.parametrize("command", OF_JOB, ids=places(OF_JOB))
def test_the_command_line_takes_it(command):
    """Every gpt-job of a fence names a command, flags and settings that there are, also behind `docker run`."""
    context = parse(command.job)
    if "preset" in context.params:
        resolved = load_config(context.params["preset"], None, context.params["overrides"])

        assert resolved.config


@pytest.mark.parametrize("command", OF_MAKE, ids=places(OF_MAKE))
def test_make_has_the_target(command):
    """Every make of a fence is a target, and what it would start is a command line that is taken."""
    words = ["make", "--dry-run", "--always-make", *command.words[1:]]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert said.returncode == 0, said.stderr
    for line in said.stdout.splitlines():
        if line.startswith(".venv/bin/gpt-job "):
            parse(tuple(shlex.split(line)[1:]))


@pytest.mark.parametrize("command", COMMANDS, ids=places(COMMANDS))
def test_every_command_is_run_by_a_test(command):
    """A command of README.md is started by tests/integration/test_docs.py, or the table says why not and where else."""
    started_there = command.place.startswith("README.md:") and command.program in RUN_HERE

    assert (command.elsewhere is not None) != (started_there and command.elsewhere is None)


@pytest.mark.parametrize("one", ELSEWHERE, ids=[one.begins for one in ELSEWHERE])
def test_what_is_run_elsewhere_is_there(one):
    """Each entry of the table is about a command of the documents, and the tests that it names exist."""
    assert any(command.elsewhere is one for command in COMMANDS)
    for test in one.tests:
        path, _, name = test.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}

        assert name in functions


@pytest.mark.parametrize("document", DOCUMENTS)
def test_inline_commands_have_their_flags(document):
    """A command in running text names a target of make, or a command and flags of gpt-job."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in inline(document):
        if command.program == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= targets, command
        if command.program == "gpt-job" and command.words[1] != "COMMAND":
            found, rest = leaf(command.words[1:])
            flags = {flag for option in found.params if isinstance(option, click.Option) for flag in option.opts}

            assert {word for word in rest if word.startswith("--")} <= flags, command


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda block: block.place)
def test_python_is_python(block):
    """A program in a fence can be read by Python."""
    assert ast.parse(block.content).body


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    """A link is a heading of the page, or a file beside it."""
    page = (ROOT / document).read_text()
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(document)}
    for target in re.findall(r"\]\(([^)]+)\)", page):
        path, _, anchor = target.partition("#")

        assert path or anchor in anchors, target
        assert ((ROOT / document).parent / path).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_two_headings_share_an_address(document):
    """Every heading can be linked to."""
    assert len(headings(document)) == len(set(headings(document)))


def test_lines_fit():
    """Lines of README.md end before column 121; tables may be wider."""
    long = [line for line in README.read_text().splitlines() if len(line) > LINE and line[0] != "|"]

    assert not long


@pytest.mark.parametrize(
    "asked",
    [
        "train on my own text",
        "resume",
        "exit code 75",
        "find the checkpoints",
        "see the metrics",
    ],
)
def test_the_first_two_screens_say_where(asked):
    """What a stranger asks first stands in the index, with a link, within two screens."""
    lines = README.read_text().splitlines()[:_LAST_OF_TWO_SCREENS]

    assert [line for line in lines if asked in line and re.search(r"\]\(#", line)]


def test_the_policy_gives_the_rights_that_check_asks_for():
    """The IAM policy allows exactly what `check` tries."""
    (policy,) = [json.loads(block.content) for block in BLOCKS if block.language == "json"]
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}

    assert allowed == set(re.findall(r"s3:\w+", " ".join(_RIGHTS.values())))
