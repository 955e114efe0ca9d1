"""`generate` over a run that was really trained: what it writes, in which order, and where it stops."""

import io
import json
from dataclasses import replace

import pytest

from job.config_file import load_config
from job.errors import ConfigError, DataError, NotFoundError
from job.generate import Decoding, generate, read_prompts

CONTEXT = 64


@pytest.fixture(scope="module")
def config(finished):
    """Where a finished run is; its tokens are bytes."""
    return replace(load_config(None).config, run_uri=str(finished.world.run))


@pytest.fixture(scope="module")
def answers(config):
    """What `generate --json` says of prompts."""

    def of(*prompts, **decoding):
        out = io.StringIO()
        generate(config, "last", prompts, Decoding(**decoding), True, out)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    return of


PROMPTS = ("line 1", "a", "line 12 of", "", "x" * 100)


def test_answers_come_in_order(answers):
    """A line for each prompt, in the order they were given, whichever was done first."""
    assert [answer["prompt"] for answer in answers(*PROMPTS, max_new_tokens=5, batch=2)] == list(PROMPTS)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_changes_nothing(answers, batch):
    """How many prompts are continued at a time changes no token of any."""
    drawing = {"max_new_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 5}

    assert answers(*PROMPTS, batch=batch, **drawing) == answers(*PROMPTS, batch=8, **drawing)


def test_each_prompt_draws_for_itself(answers):
    """The same prompt twice is drawn twice; another seed draws others."""
    first, second = answers("line 1", "line 1", temperature=1.0, seed=1)
    again = answers("line 1", temperature=1.0, seed=1)

    assert first["tokens"] != second["tokens"]
    assert again == [first] != answers("line 1", temperature=1.0, seed=2)


def test_text_is_written_in_order(config, answers):
    """As text, each prompt and its continuation follow each other, an empty line between."""
    out = io.StringIO()
    generate(config, "last", PROMPTS[:3], Decoding(max_new_tokens=30), False, out)
    expected = [f"{answer['prompt']}{answer['text']}\n" for answer in answers(*PROMPTS[:3], max_new_tokens=30)]

    assert out.getvalue() == "\n".join(expected)


def test_text_is_streamed(config):
    """Text is written as it is known: many pieces, the prompt first."""

    class Pieces(io.StringIO):
        def write(self, text):
            seen.append(text)
            return super().write(text)

    seen = []
    generate(config, "last", ["line 1"], Decoding(max_new_tokens=30), False, Pieces())

    assert seen[0] == "line 1"
    assert len([piece for piece in seen if piece]) > 20


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stop_string_ends_the_text(answers, beams):
    """A stop string ends text and tokens before it; the reason says so."""
    whole = answers("line 1", max_new_tokens=40, beams=beams)[0]
    stop = whole["text"][7:10]
    cut = answers("line 1", max_new_tokens=40, beams=beams, stops=[stop])[0]

    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["tokens"] == whole["tokens"][: len(cut["text"])]
    assert (whole["finish_reason"], cut["finish_reason"]) == ("length", "stop")


def test_an_empty_prompt_begins_a_text(answers):
    """Nothing given is the end of the text before."""
    assert answers("", max_new_tokens=3)[0]["prompt_tokens"] == [256]


def test_a_long_prompt_keeps_its_end(answers):
    """Of a prompt longer than the context the model sees the end alone."""
    long, end = answers("ab" * 50 + "line 12 of " * 8, ("ab" * 50 + "line 12 of " * 8)[-CONTEXT:], max_new_tokens=4)

    assert long["tokens"] == end["tokens"]
    assert len(long["prompt_tokens"]) == 188


def test_past_the_context(answers, capfd):
    """Going past the context is said once, and the continuation is as long as was asked."""
    found = answers(*PROMPTS, max_new_tokens=70, batch=2)
    said = capfd.readouterr()

    assert [len(answer["tokens"]) for answer in found] == [70] * len(PROMPTS)
    assert (said.out + said.err).count("past the context the window slides") == 1


def test_nothing_to_generate(answers):
    """No new tokens: the prompt, and the length was reached."""
    assert answers("a", max_new_tokens=0) == [
        {"prompt": "a", "prompt_tokens": [97], "text": "", "tokens": [], "finish_reason": "length"}
    ]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": 0}, {"beams": 2, "top_p": 0.5}, {"repetition_penalty": 0.0}]
)
def test_refused(wrong):
    """What has no meaning is refused before a model is loaded."""
    with pytest.raises(ConfigError):
        Decoding(**wrong)


def test_prompts_are_read_in_order(tmp_path):
    """Prompts of flags come first, then those of the file; empty lines are none, and a dash is all of stdin."""
    (tmp_path / "prompts.txt").write_text("one\n\ntwo  \n")

    assert read_prompts(["a", "-"], str(tmp_path / "prompts.txt"), io.StringIO("b\nc")) == ["a", "b\nc", "one", "two  "]
    assert read_prompts([], "-", io.StringIO("b\nc\n")) == ["b", "c"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"\xff\xfe", DataError),
        (b"{", DataError),
        (b"3", DataError),
        (b'{"text": "x"}', DataError),
        (b"[" * 100_000, DataError),
        (b"\n", ConfigError),
        (None, NotFoundError),
    ],
)
def test_bad_prompt_files(tmp_path, content, error):
    """A file of prompts that is absent, not UTF-8, not JSON lines or empty is refused with its name or the way out."""
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(error, match="--prompts"):
        read_prompts([], str(path), io.StringIO())
