"""The `generate` command: a prompt continued by a run's model, shown as it comes."""

import json
from collections.abc import Iterable
from typing import TextIO

import torch

from job.config import Config
from job.data.tokenizer import Tokenizer
from job.errors import ConfigError
from job.model.generation import beam_search
from job.model.generation import generate as continue_prompt
from job.training.loading import LoadedRun
from job.training.pretrained import load_for_use
from job.training.randomness import generator_for


def generate(
    config: Config,
    which: str,
    as_json: bool,
    out: TextIO,
    *,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    beams: int,
    seed: int,
    weights: str | None = None,
) -> None:
    """Write the prompt and its continuation to `out`, or one line of JSON.

    Raises:
        DataError: The prompt has a character that the tokenizer does not know.
        ConfigError: An argument has no meaning.
    """
    if beams > 1 and (temperature or top_k is not None or top_p is not None):
        raise ConfigError(f"--beams {beams} searches and draws nothing: no --temperature, --top-k or --top-p with it")
    run = load_for_use(config, which, weights)
    tokens = run.tokenizer.encode(prompt).tolist()
    given = torch.tensor(tokens, dtype=torch.int64, device=run.device)
    new: Iterable[int]
    with run.numerics.autocast():
        if beams > 1:
            new = beam_search(run.model, given, max_new_tokens, beams)
        else:
            source = generator_for(run.device, seed, "generate")
            new = continue_prompt(run.model, given, max_new_tokens, temperature, top_k, top_p, source)
        if as_json:
            new = [int(token) for token in new]
            out.write(json.dumps(_facts(run, prompt, tokens, new), ensure_ascii=False) + "\n")
            return
        out.write(prompt)
        for piece in as_text(run.tokenizer, tokens, new):
            out.write(piece)
            out.flush()
    out.write("\n")


def _facts(run: LoadedRun, prompt: str, tokens: list[int], new: list[int]) -> dict[str, object]:
    text = "".join(as_text(run.tokenizer, tokens, new))
    return {"prompt": prompt, "prompt_tokens": tokens, "text": text, "tokens": new, "finish_reason": "length"}


def as_text(tokenizer: Tokenizer, prompt: list[int], new: Iterable[int]) -> Iterable[str]:
    """Pieces of text as tokens arrive; a character that is not whole yet waits for its other bytes."""
    known, shown = list(prompt), tokenizer.decode(prompt)
    for token in new:
        known.append(int(token))
        text = tokenizer.decode(known)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(known)
    if len(rest) > len(shown):
        yield rest[len(shown) :]
