"""Figures that others published for the same work, each with its source: what a run is held against.

The terminal shows them beside an evaluation, the report draws them in grey. A figure belongs to a run whose text and
model are those of its source; nothing is compared that was measured on something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_VERDICT = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What somebody else measured.

    Args:
        name: In a word, as the terminal shows it.
        source: Where it stands.
        curve: Our step, training loss and validation loss; empty when only an end is known.
        val_loss: The validation loss that was reached in the end.
        settings: Settings of a run that it can be compared with.
        sha256: Of that run's text; empty when its address has to do.
        corpus: A word in the address of the text, when there is no hash.
    """

    name: str
    source: str
    curve: Sequence[tuple[int, float, float]] = ()
    val_loss: float | None = None
    settings: Mapping[str, object]
    sha256: str = ""
    corpus: str = ""

    def at(self, step: int) -> float | None:
        """The validation loss to show beside an evaluation at `step`: that of the step, or the end that is known."""
        if not self.curve:
            return self.val_loss
        return next((validation for known, _, validation in self.curve if known == step), None)

    def fits(self, config: Mapping[str, Any], corpus: Mapping[str, Any]) -> bool:
        """Whether a run with this config and these facts of its corpus does the same work."""
        files = corpus.get("files") or []
        if self.sha256 and [file.get("sha256") for file in files] != [self.sha256]:
            return False
        addresses = " ".join(str(file.get("uri")) for file in files).lower()
        if self.corpus and self.corpus not in addresses:
            return False
        return all(_setting(config, name) == value for name, value in self.settings.items())


def find_published(config: Mapping[str, Any], corpus: Mapping[str, Any]) -> list[Published]:
    """Every published figure for the work that a run does, the closest first."""
    return [published for published in PUBLISHED if published.fits(config, corpus)]


def _setting(config: Mapping[str, Any], name: str) -> object:
    section, _, key = name.partition(".")
    values = config.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _shape(n_layer: int, n_head: int, n_embd: int, context_length: int) -> dict[str, object]:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": context_length}
    return {f"model.{name}": size for name, size in sizes.items()}


_BOOK = Published(
    name="book",
    source="Raschka, Build a Large Language Model (From Scratch), chapter 5 (torch 2.6, CPU); its step k is our k + 1",
    curve=(
        (1, 9.781, 9.933),
        (6, 8.111, 8.339),
        (11, 6.661, 7.048),
        (16, 5.961, 6.616),
        (21, 5.726, 6.600),
        (26, 5.201, 6.348),
        (31, 4.417, 6.278),
        (36, 4.069, 6.226),
        (41, 3.732, 6.160),
        (46, 2.850, 6.179),
        (51, 2.427, 6.141),
        (56, 2.104, 6.134),
        (61, 1.882, 6.233),
        (66, 1.320, 6.238),
        (71, 0.985, 6.242),
        (76, 0.717, 6.293),
        (81, 0.541, 6.393),
        (86, 0.391, 6.452),
    ),
    val_loss=6.452,
    settings={**_shape(12, 12, 768, 256), "data.tokenizer": "gpt2", "training.batch_size": 2, "data.stride": 256},
    sha256=_VERDICT,
)

_NANOGPT_GPU = Published(
    name="nanoGPT",
    source="nanoGPT README, shakespeare_char on one A100: batch 64, dropout 0.2, 5,000 steps; the best it reached",
    val_loss=1.4697,
    settings={**_shape(6, 6, 384, 256), "data.tokenizer": "char"},
    sha256=_SHAKESPEARE,
)

_NANOGPT_CPU = Published(
    name="nanoGPT",
    source="nanoGPT README, shakespeare_char on a CPU: batch 12, dropout 0, 2,000 steps; about 1.88",
    val_loss=1.88,
    settings={**_shape(4, 4, 128, 64), "data.tokenizer": "char"},
    sha256=_SHAKESPEARE,
)

_LLM_C = Published(
    name="llm.c",
    source="llm.c's 124M recipe after 10 B tokens of FineWeb (modded-nanogpt's README)",
    val_loss=3.2847,
    settings={**_shape(12, 12, 768, 1024), "data.tokenizer": "gpt2"},
    corpus="fineweb",
)

_SIZES = {
    "124M": (_shape(12, 12, 768, 1024), 3.424958, 3.12),
    "355M": (_shape(24, 16, 1024, 1024), 3.083089, 2.84),
    "774M": (_shape(36, 20, 1280, 1024), 3.000580, 2.67),
    "1558M": (_shape(48, 25, 1600, 1024), 2.831273, 2.54),
}

PUBLISHED = (
    _BOOK,
    _NANOGPT_GPU,
    _NANOGPT_CPU,
    _LLM_C,
    *(
        Published(
            name="GPT-2",
            source=f"OpenAI's {size} weights on {text} ({place})",
            val_loss=loss,
            settings={**shape, "data.tokenizer": "gpt2"},
            corpus=text.lower(),
        )
        for size, (shape, fineweb, openwebtext) in _SIZES.items()
        for text, loss, place in (
            ("FineWeb", fineweb, "llm.c, dev/vislog.ipynb"),
            ("OpenWebText", openwebtext, "nanoGPT README"),
        )
    ),
)
