"""What the documents tell people to type: every command of README.md, docker/README.md and k8s/README.md.

A fence of `sh` (or of no language) holds commands, one a line or over lines that end in a backslash; `python` holds a
program; `json` and `text` are to be read. Inline code that begins like a command is one, too.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from job.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docker/README.md", "k8s/README.md")
PROGRAMS = ("gpt-job", "make", "docker", "kubectl", "kind", "curl", "export")
LANGUAGES = {"": "sh", "sh": "sh", "python": "python", "json": "json", "text": "text"}
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


@dataclass(frozen=True)
class Elsewhere:
    """Commands that no test of the documents starts.

    Args:
        begins: How they begin, as the documents have them.
        why: What they need.
        tests: Those that run the same, as file::name; none where nobody has.
    """

    begins: str
    why: str
    tests: tuple[str, ...] = ()


_TRAINED = "tests/image/test_training.py::test_a_run_on_a_volume_comes_to_its_end"
_RENDERED = "tests/k8s/test_schemas.py::test_the_api_accepts_it"
_CLUSTER = "a cluster: nobody has run it, and k8s/README.md says so"
ELSEWHERE = (
    Elsewhere(
        "lm-eval run",
        "a harness of half a gigabyte",
        ("tests/parity/test_harness.py::test_the_harness_runs_on_an_export",),
    ),
    Elsewhere(
        "lm_eval --model local-completions",
        "the same",
        ("tests/parity/test_harness.py::test_the_harness_runs_on_our_server",),
    ),
    Elsewhere("guidellm run", "packages of its own: run by hand, as README.md says"),
    Elsewhere("vllm bench serve", "a whole vLLM: not run, as README.md says"),
    Elsewhere("PET_NNODES=2", "two machines", ("tests/integration/test_processes.py::test_two_machines",)),
    Elsewhere("make image", "a container engine", ("tests/image/test_contents.py::test_it_says_what_it_is",)),
    Elsewhere(
        "make compose-up",
        "an engine and public images",
        ("tests/image/test_s3.py::test_the_job_is_killed_and_goes_on_from_the_bucket",),
    ),
    Elsewhere("docker run --rm -v gpt-runs:/runs gpt-pretrain-job:0.1.0-cpu train", "an engine", (_TRAINED,)),
    Elsewhere(
        "docker run --rm -v gpt-runs:/runs gpt-pretrain-job:0.1.0-cpu generate",
        "an engine",
        ("tests/image/test_training.py::test_what_it_learned_can_be_generated_from",),
    ),
    Elsewhere(
        "docker run --rm -v gpt-runs:/runs -p 127.0.0.1:8000:8000 gpt-pretrain-job:0.1.0-cpu serve",
        "an engine",
        ("tests/image/test_commands.py::test_a_server_is_seen_to_be_healthy",),
    ),
    Elsewhere("docker run --rm --gpus all", "a GPU in a container: nobody has run it, and docker/README.md says so"),
    Elsewhere(
        "docker stop",
        "an engine",
        ("tests/image/test_stopping.py::test_sigterm_saves_and_the_next_container_ends_equal",),
    ),
    Elsewhere("make manifests", "kubectl", (_RENDERED,)),
    Elsewhere("make k8s-apply", _CLUSTER, (_RENDERED,)),
    Elsewhere("kubectl", _CLUSTER),
    Elsewhere("kind load", _CLUSTER),
)


@dataclass(frozen=True)
class Command:
    """One line that a person types.

    Args:
        words: Program and arguments, without what is assigned before them.
        environ: What is assigned before them.
        comment: What the document says behind it.
    """

    place: str
    text: str
    words: tuple[str, ...]
    environ: dict[str, str]
    comment: str

    @property
    def program(self) -> str:
        """What is started."""
        return self.words[0].removeprefix(".venv/bin/")

    @property
    def job(self) -> tuple[str, ...] | None:
        """The words of `gpt-job` in it, also in a container's."""
        if self.program == "gpt-job":
            return self.words[1:]
        if self.words[:2] != ("docker", "run"):
            return None
        image = next(index for index, word in enumerate(self.words) if word.startswith("gpt-pretrain-job:"))
        return self.words[image + 1 :]

    @property
    def elsewhere(self) -> Elsewhere | None:
        """Why no test of the documents starts it; None if one does."""
        return next((one for one in ELSEWHERE if self.text.startswith(one.begins)), None)

    @property
    def ends_with(self) -> int:
        """The exit code that the comment promises."""
        said = re.search(r"ends with (\d+)", self.comment)
        return int(said[1]) if said else 0


@dataclass(frozen=True)
class Block:
    """A fence, and the heading it stands under."""

    document: str
    heading: str
    line: int
    language: str
    content: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.document}:{self.line} ({self.heading})"

    @property
    def commands(self) -> list[Command]:
        """Its commands, if it has any."""
        if self.language != "sh":
            return []
        lines = re.sub(r"\\\n\s*", " ", self.content).splitlines()
        return [command(self.place, line) for line in lines if line.strip()]


def command(place: str, line: str) -> Command:
    """A line of a shell as a command."""
    text, _, comment = line.partition(" #")
    words = shlex.split(text)
    split = next((index for index, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    environ = dict(word.split("=", 1) for word in words[:split])
    return Command(place, text.strip(), tuple(words[split:]), environ, comment.strip())


def blocks(document: str) -> Iterator[Block]:
    """The fences of a document, in its order."""
    heading = ""
    for token, following in _pairs(document):
        if token.type == "heading_open":
            heading = following.content
        if token.type == "fence":
            line = (token.map or [0])[0] + 1
            yield Block(document, heading, line, LANGUAGES[token.info.strip()], token.content)


def inline(document: str) -> Iterator[Command]:
    """Commands in running text: code that begins with a program's name and goes on."""
    heading = ""
    for token, following in _pairs(document):
        if token.type == "heading_open":
            heading = following.content
        for child in token.children or ():
            words = child.content.split()
            if child.type == "code_inline" and len(words) > 1 and words[0].removeprefix(".venv/bin/") in PROGRAMS:
                yield command(f"{document} ({heading})", child.content)


def headings(document: str) -> list[str]:
    """The texts of all headings."""
    return [following.content for token, following in _pairs(document) if token.type == "heading_open"]


def _pairs(document: str) -> Iterator[tuple[Token, Token]]:
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / document).read_text())
    return zip(tokens, [*tokens[1:], Token("end", "", 0)], strict=True)


def leaf(words: tuple[str, ...]) -> tuple[click.Command, list[str]]:
    """The command that these words of `gpt-job` name, and what is left for it."""
    found: click.Command = main
    rest = list(words)
    while isinstance(found, click.Group):
        if not rest or rest[0] not in found.commands:
            raise click.UsageError(f"no command {' '.join(words)!r}")
        found = found.commands[rest.pop(0)]
    return found, rest


def parse(words: tuple[str, ...]) -> click.Context:
    """What the command line makes of these words of `gpt-job`; nothing is started."""
    found, rest = leaf(words)
    return found.make_context(found.name, rest)
