"""Whether corpus and tokenizer can be had, and what follows from them before anything is downloaded."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from job.checks.finding import Finding, problem, size
from job.config import Config
from job.data.bpe_training import PREFIX, entries_of
from job.data.corpus import Corpus, pull
from job.data.gpt2_files import missing_files
from job.data.reachable import Reached, ask, reach
from job.data.tokenizer import build_tokenizer
from job.errors import ConfigError, DataError, JobError, NotFoundError
from job.infra.storage import open_store

READ_AT_ONCE = 16 << 20  # bytes of local text that are read for its alphabet
_TEXT = "The check of gpt-job: naïve, 12 €."
_BYTES_PER_TOKEN = {"char": 1.0, "byte": 1.0}  # about; others' depend on the text
_OTHERS = 4.0
GPT2 = 50257  # kinds of tokens
_CHARACTERS = 256  # of a corpus that nobody has read


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of a run's text before it is read.

    Args:
        vocab_size: A guess, unless `known`.
        bytes: Of the corpus as it lies there; None when unknown.
        tokens: About, of all splits; None when unknown.
    """

    vocab_size: int
    known: bool
    bytes: int | None
    tokens: int | None


def corpus(config: Config, found: list[Reached]) -> Iterator[Finding]:
    """Whether every entry of `data.corpus` is there; adds what is there to `found`."""
    quick = replace(config.storage, timeouts=(3.0, 5.0), stall_seconds=None)
    for entry in reach(config.data, lambda uri: open_store(uri, quick, tries=2)):
        if isinstance(entry, JobError):
            yield problem("corpus", entry)
            continue
        found.append(entry)
        bytes_said = "size unknown" if entry.size is None else size(entry.size)
        said = f"{entry.uri}: {entry.files:,} file{'s' if entry.files != 1 else ''}, {bytes_said}"
        if entry.size == 0:
            advice = "put text there"
            yield Finding(
                about="corpus", level="error", said=f"{said}: it is empty", advice=advice, code=DataError.exit_code
            )
        else:
            yield Finding(about="corpus", said=said, facts={"bytes": entry.size, "files": entry.files})


def tokenizer(config: Config, reached: Sequence[Reached]) -> tuple[Finding, Outlook]:
    """Whether the tokenizer can be had, and the outlook that follows."""
    total = None if any(one.size is None for one in reached) or not reached else sum(one.size or 0 for one in reached)
    name = config.data.tokenizer
    try:
        said, vocab_size, known = _tokenizer(config, reached)
        found = Finding(about="tokenizer", said=said)
    except JobError as error:
        advice = (
            "put vocab.bpe and encoder.json in a folder and name it in data.tokenizer_dir" if name == "gpt2" else ""
        )
        found, vocab_size, known = problem("tokenizer", error, advice), GPT2, False
    tokens = None if total is None else int(total / _BYTES_PER_TOKEN.get(name, _OTHERS))
    return found, Outlook(vocab_size, known, total, tokens)


def _tokenizer(config: Config, reached: Sequence[Reached]) -> tuple[str, int, bool]:
    """What to say, the vocabulary's size, and whether it is known."""
    name = config.data.tokenizer
    if name == "char" and not _readable_at_once(reached):
        return f"char: the corpus's own characters, taken to be {_CHARACTERS} here", _CHARACTERS, False
    if name.startswith(PREFIX):
        entries = entries_of(name)
        if importlib.util.find_spec("tokenizers") is None:
            raise ConfigError(f"data.tokenizer={name!r} needs a module: pip install 'gpt-pretrain-job[bpe]'")
        return f"{name}: will be trained on the corpus", entries, True
    if name == "gpt2" and (missing := missing_files(config.data, _still)):
        for asset in missing:
            try:
                ask(asset.url)
            except JobError as error:
                raise NotFoundError(
                    f"GPT-2's {asset.name} is not on this machine, and not to be had: {error}"
                ) from error
        return f"gpt2: {' and '.join(asset.name for asset in missing)} will be downloaded", GPT2, True
    text = pull(config.data, _no_store, _still) if name == "char" else Corpus(())
    made = build_tokenizer(config.data, text, _still)
    if name != "char" and made.decode(made.encode_ordinary(_TEXT)) != _TEXT:
        raise ConfigError(f"data.tokenizer={name!r} does not give back the text it was given")
    return f"{name}: {made.vocab_size:,} kinds of tokens", made.vocab_size, True


def _readable_at_once(reached: Sequence[Reached]) -> bool:
    sizes = [one.size if one.local else None for one in reached]
    return bool(sizes) and None not in sizes and sum(size or 0 for size in sizes) <= READ_AT_ONCE


def _still(done: int = 0, more: int = 0, /) -> None:
    """Nobody watches a preflight's progress."""


def _no_store(uri: str) -> NoReturn:
    raise ConfigError(f"{uri} is not on this machine")
