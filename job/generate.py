"""The `generate` command: prompts continued by a model, shown as they come."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import structlog
import torch

from job.config import Config
from job.data.streaming import TextStream
from job.data.tokenizer import Tokenizer
from job.errors import ConfigError, DataError, NotFoundError
from job.model.beams import beam_search
from job.model.decoder import Decoder
from job.model.generation import Continuations
from job.model.projection import fastest_dtype
from job.model.rows import CachedRows
from job.model.sampling import Sampling
from job.training.pretrained import load_for_use
from job.training.randomness import generator_for

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How prompts are continued.

    Args:
        dtype: `fp32`: the model's own logits; `bf16`: half the memory to read; `auto`: what is fastest here.
        batch: Prompts that are continued at the same time; changes nothing but the speed (and roundings).
        beams: More than 1 searches instead of drawing.
        stops: Texts that end a continuation.
        stop_at_end_of_text: Whether the tokenizer's end-of-text token ends it.
        seed: Each prompt's draws follow from it and the prompt's number.

    Raises:
        ConfigError: A value has no meaning, or does not go with another.
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    stops: Sequence[str] = ()
    stop_at_end_of_text: bool = False
    seed: int = 0
    batch: int = 8
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.sampling != Sampling() and self.beams > 1:
            raise ConfigError(
                f"--beams {self.beams} searches and draws nothing: no --temperature, --top-k, --top-p or "
                "--repetition-penalty with it"
            )

    @property
    def sampling(self) -> Sampling:
        """How a token is chosen."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )


@dataclass(eq=False, slots=True)
class _Answer:
    """One prompt and what has come of it."""

    prompt: str
    prompt_tokens: list[int]
    stream: TextStream
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def facts(self, tokenizer: Tokenizer) -> dict[str, object]:
        """As JSON values; of tokens those that the text needs."""
        tokens = self.tokens
        if self.stream.stopped:
            lengths = (len(tokenizer.decode(tokens[:count])) for count in range(len(tokens) + 1))
            tokens = tokens[: next(count for count, length in enumerate(lengths) if length >= len(self.stream.text))]
        return {
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "text": self.stream.text,
            "tokens": tokens,
            "finish_reason": self.finish_reason,
        }


def generate(
    config: Config,
    which: str,
    prompts: Sequence[str],
    decoding: Decoding,
    as_json: bool,
    out: TextIO,
    weights: str | None = None,
) -> None:
    """Write each prompt and its continuation to `out`, in order, or a line of JSON each.

    Raises:
        DataError: A prompt has a character that the tokenizer does not know.
        ConfigError: An argument has no meaning.
    """
    run = load_for_use(config, which, weights)
    answers = [
        _Answer(prompt, _tokens(run.tokenizer, prompt), TextStream(run.tokenizer, decoding.stops)) for prompt in prompts
    ]
    decoder = Decoder(run.model, _dtype(decoding.dtype, run.device))
    _warn_of_length(answers, decoding.max_new_tokens, decoder.context_length)
    stop_token = run.tokenizer.end_of_text if decoding.stop_at_end_of_text else None
    answer = _search if decoding.beams > 1 else _draw
    writer = _Writer(answers, run.tokenizer, as_json, out)
    for number, piece in answer(decoder, answers, decoding, stop_token):
        writer.add(number, piece)


def _draw(
    decoder: Decoder, answers: Sequence[_Answer], decoding: Decoding, stop_token: int | None
) -> Iterator[tuple[int, str]]:
    """Continue all prompts side by side -> whose text goes on, and how."""
    capacity = max(1, min(decoding.batch, len(answers)))
    rows = CachedRows(decoder, capacity)
    open_ones = Continuations(rows, decoding.max_new_tokens, decoding.sampling, stop_token, capacity)
    for number, answer in enumerate(answers):
        open_ones.add(answer.prompt_tokens, generator_for(decoder.device, decoding.seed, "generate", number))
    while open_ones:
        for number, token, finish_reason in open_ones.step():
            answer = answers[number]
            piece = ""
            if token is not None:
                answer.tokens.append(token)
                piece = answer.stream.add(token)
            if finish_reason:
                piece += answer.stream.end()
            if answer.stream.stopped:
                open_ones.end(number)
            answer.finish_reason = "stop" if answer.stream.stopped else finish_reason
            yield number, piece


def _search(
    decoder: Decoder, answers: Sequence[_Answer], decoding: Decoding, stop_token: int | None
) -> Iterator[tuple[int, str]]:
    """Search for each prompt's continuation, one prompt after the other -> whose text is known, and it."""
    rows = CachedRows(decoder, decoding.beams)
    for number, answer in enumerate(answers):
        found = beam_search(
            rows, answer.prompt_tokens, decoding.max_new_tokens, decoding.beams, decoding.length_penalty, stop_token
        )
        rows.select([])
        answer.tokens = found
        text = "".join(map(answer.stream.add, found)) + answer.stream.end()
        stopped = answer.stream.stopped or len(found) < decoding.max_new_tokens
        answer.finish_reason = "stop" if stopped else "length"
        yield number, text


class _Writer:
    """Writes answers in the order of their prompts, the first that is not complete as it comes."""

    def __init__(self, answers: Sequence[_Answer], tokenizer: Tokenizer, as_json: bool, out: TextIO) -> None:
        self._answers, self._tokenizer, self._as_json, self._out = answers, tokenizer, as_json, out
        self._current = 0
        self._begin()

    def add(self, number: int, piece: str) -> None:
        """More text of an answer."""
        if number != self._current:
            return  # it is written when its turn comes
        if not self._as_json:
            self._out.write(piece)
            self._out.flush()
        while self._current < len(self._answers) and self._answers[self._current].finish_reason:
            if self._as_json:
                facts = self._answers[self._current].facts(self._tokenizer)
                self._out.write(json.dumps(facts, ensure_ascii=False))
            self._out.write("\n")
            self._current += 1
            self._begin()

    def _begin(self) -> None:
        """Write what there is of the answer whose turn it is."""
        if not self._as_json and self._current < len(self._answers):
            answer = self._answers[self._current]
            self._out.write(("\n" if self._current else "") + answer.prompt + answer.stream.text)
        self._out.flush()


def read_prompts(texts: Sequence[str], path: str | None, stdin: TextIO) -> list[str]:
    """The prompts that the flags name, in order.

    Args:
        texts: A prompt each; `-` is all of stdin.
        path: File of prompts, `-` for stdin: one a line (empty lines are none), or in `.jsonl` one JSON string, or
            object with `prompt`, a line.

    Raises:
        ConfigError: There is none.
        NotFoundError, DataError: The file is not there, is not UTF-8, or holds something else.
    """
    prompts = [stdin.read() if text == "-" else text for text in texts]
    if path is not None:
        lines = [line for line in _read(path, stdin).splitlines() if line.strip()]
        prompts += [_json_prompt(path, line) for line in lines] if path.endswith(".jsonl") else lines
    if not prompts:
        raise ConfigError("nothing to continue: --prompt TEXT, --prompt - (stdin) or --prompts FILE")
    return prompts


def _read(path: str, stdin: TextIO) -> str:
    if path == "-":
        return stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"--prompts {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {path}: not UTF-8 at byte {error.start}") from error


def _json_prompt(path: str, line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"--prompts {path}: {line[:40]!r} is not JSON: {error}") from error
    prompt = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(prompt, str):
        raise DataError(f'--prompts {path}: {line[:40]!r} is neither a string nor an object with a "prompt"')
    return prompt


def _tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt. An empty one begins a new text: after end-of-text, where there is such a token."""
    tokens: list[int] = tokenizer.encode(prompt).tolist()
    if tokens or tokenizer.end_of_text is None:
        return tokens
    return [tokenizer.end_of_text]


def _warn_of_length(answers: Sequence[_Answer], max_new_tokens: int, context_length: int) -> None:
    longest = max(len(answer.prompt_tokens) for answer in answers)
    if longest > context_length:
        log.warning("a prompt is longer than the context: only its end is read", tokens=longest, context=context_length)
    if longest + max_new_tokens > context_length + 1:
        log.warning(
            "past the context the window slides, and each token costs as much as reading the whole window",
            context=context_length,
            longest_possible=longest + max_new_tokens,
        )


def _dtype(asked: str, device: torch.device) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}.get(asked) or fastest_dtype(device)
