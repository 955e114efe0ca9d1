"""What cannot work is refused: with the code that says whose turn it is, the reason, and nothing written."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from tests.integration.command import IMPATIENT, SUMMARY, Ending, World, assignments, files, two_at_a_time


@dataclass(frozen=True)
class Refusal:
    """A command that must not succeed.

    Args:
        code: What it ends with.
        says: What its reason contains.
        spoil: Done to the world before.
    """

    code: int
    says: tuple[str, ...]
    settings: tuple[str, ...] = ()
    command: str = "train"
    more: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    spoil: Callable[[World], object] = lambda world: None
    launcher: tuple[str, ...] | None = None


def corpus(content: bytes) -> Callable[[World], object]:
    """Puts another text in the place of the world's own."""
    return lambda world: world.corpus.write_bytes(content)


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


EMPTY = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR", "TIKTOKEN_CACHE_DIR", "GPT_JOB_ASSETS"), "empty")
OFFLINE = {"HTTPS_PROXY": f"http://127.0.0.1:{closed_port()}", "https_proxy": "", "NO_PROXY": "", "no_proxy": ""}
WRONG = ("model.n_layers=2", "training.max_step=3", "optimizer.learning_rate=-1", "data.split=[0.5, 0.1]", "seed=many")

REFUSALS = {
    "empty": Refusal(65, ("the corpus is empty: corpus.txt",), spoil=corpus(b"")),
    "not UTF-8": Refusal(65, ("corpus.txt: not UTF-8 at byte 6000",), spoil=corpus(b"x" * 6000 + b"\xff" * 9)),
    "too small": Refusal(
        65,
        ("validation has 50 tokens and needs 65 (model.context_length + 1)", "test has 50 tokens and needs 65"),
        spoil=corpus(b"x" * 500),
    ),
    "wrong hash": Refusal(
        65, ("corpus.txt: expected sha256 0000", ", got "), (f"data.corpus=corpus.txt#sha256={'0' * 64}",)
    ),
    "no corpus": Refusal(66, ("nowhere.txt",), ("data.corpus=nowhere.txt",)),
    "no tokenizer": Refusal(
        66,
        ("GPT-2's vocab.bpe is in none of", "\n  empty\n", "could not be downloaded", "data.tokenizer_dir"),
        ("data.tokenizer=gpt2", "data.tokenizer_dir=tokenizer"),
        environ=EMPTY | OFFLINE,
        spoil=lambda world: (world.folder / "empty").mkdir(),
        launcher=IMPATIENT,
    ),
    "evaluate nothing": Refusal(66, ("run: no run here",), command="evaluate"),
    "continue nothing": Refusal(66, ("run: no run here",), command="generate", more=("--prompt", "x")),
    "list nothing": Refusal(66, ("run: no run here",), command="checkpoints list"),
    "run below a file": Refusal(69, ("corpus.txt/run", "Not a directory"), ("run_uri=corpus.txt/run",)),
    "no GPU": Refusal(
        78,
        ("runtime.device='cuda', but torch finds no GPU: ",),
        ("runtime.device=cuda",),
        environ={"CUDA_VISIBLE_DEVICES": ""},
    ),
    "wrong settings": Refusal(
        78,
        (
            "n_layers is called model.n_layer here",
            "unknown setting training.max_step (--set): did you mean training.max_steps?",
            "optimizer.learning_rate=-1",
            "data.split=[0.5, 0.1] must sum to 1",
            "seed=many (--set): expected a whole number",
        ),
        WRONG,
    ),
    "no such option": Refusal(2, ("No such option '--nope'",), more=("--nope",)),
}
ALL = pytest.mark.parametrize("name", REFUSALS)
TRAIN = pytest.mark.parametrize("name", [name for name, refusal in REFUSALS.items() if refusal.command == "train"])


@dataclass(frozen=True)
class Refused:
    """What a refusal came to."""

    ending: Ending
    written: set[str]


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> Mapping[str, Refused]:
    """What every refusal came to."""

    def provoke(refusal: Refusal) -> Refused:
        world = World.create(tmp_path_factory.mktemp("refused"))
        refusal.spoil(world)
        words = (*assignments(*refusal.settings), *refusal.more)
        with world.job(refusal.command, *words, launcher=refusal.launcher, **refusal.environ) as job:
            ending = job.ending()
        return Refused(ending, set(files(world.run)))

    return two_at_a_time(provoke, REFUSALS)


@ALL
def test_a_refusal_has_its_code(refused, name):
    """Exit code, termination message and last log line give the code of the table."""
    assert refused[name].ending.codes == {REFUSALS[name].code}


@ALL
def test_a_refusal_says_why(refused, name):
    """The reason names what was wrong, where, and what was expected: the same in every place."""
    ending = refused[name].ending

    assert [text for text in REFUSALS[name].says if text not in ending.reason] == []
    assert ending.log[-1]["reason"] == ending.reason


@ALL
def test_a_refusal_writes_nothing(refused, name):
    """No run begins, and nobody sees a traceback."""
    assert refused[name].written == set()
    assert "Traceback" not in refused[name].ending.stderr


@TRAIN
def test_a_refused_run_still_ends_with_a_summary(refused, name):
    """The last line on stdout is the summary, `failed`; a line that could not be read has none."""
    ending = refused[name].ending

    assert ending.code == 2 or (ending.summary.keys() == SUMMARY and ending.summary["status"] == "failed")


def test_every_place_is_named(refused):
    """Without its tokenizer the job lists each folder that it looked into."""
    reason = refused["no tokenizer"].ending.reason
    listed = [line.strip() for line in reason.splitlines() if line.startswith("  ")]

    assert listed[:3] == ["tokenizer", "empty", "empty"]
    assert listed[-2].endswith("empty/data-gym-cache")
    assert listed[-1].endswith("cache/content")


def test_torch_says_why_there_is_no_gpu(refused):
    """The message carries torch's own reason."""
    reason = refused["no GPU"].ending.reason.partition("finds no GPU: ")[2]

    assert "CUDA" in reason
    assert "no reason given" not in reason


def test_another_model_is_refused_field_by_field(killed, tmp_path):
    """A run is not continued as another one: 78, each field with both values, and where a run of its own would be."""
    world = killed.world.copy(tmp_path)
    before = files(world.run)
    ending = world.train("model.n_embd=64", "seed=7")

    assert ending.codes == {78}
    assert "model.n_embd is 32 in the run, 64 here" in ending.reason
    assert "seed is 1337 in the run, 7 here" in ending.reason
    assert "leave run_uri unset for runs/quickstart-" in ending.reason
    assert files(world.run) == before


def test_another_text_is_refused(killed, tmp_path):
    """The same name with other content is another corpus: 78, and no checkpoint is touched."""
    world = killed.world.copy(tmp_path)
    saved = world.saved()
    world.corpus.write_text(world.corpus.read_text().replace("7", "8"))
    ending = world.train()

    assert ending.codes == {78}
    assert "corpus is '" in ending.reason
    assert world.saved() == saved
