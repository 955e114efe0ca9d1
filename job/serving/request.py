"""What a client may ask of /v1/completions: the fields, their checks, and the one value that they become."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from job.data.tokenizer import Tokenizer
from job.errors import ConfigError, DataError
from job.model.sampling import Sampling
from job.serving.refusal import Refusal
from job.serving.settings import ServingConfig

DEFAULT_MAX_TOKENS = 16  # OpenAI's
PROMPT_KINDS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"
_Count = Annotated[int, Field(ge=0)]
_Tokens = Annotated[list[_Count], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Prompts = str | _Texts | _Tokens | Annotated[list[_Tokens], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    """How a stream says what was used."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="A last event with `usage` and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="`usage` so far in every event, as vLLM has it.")


class CompletionBody(BaseModel):
    """The JSON of a request. Fields of OpenAI's that change nothing at their neutral value are let pass with that."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="Name of the one model, as /v1/models has it; may be left out.")
    prompt: (
        str | Annotated[list[str], Field(fail_fast=True)] | _Tokens | Annotated[list[_Tokens], Field(fail_fast=True)]
    ) = Field(description=f"Text to continue: {PROMPT_KINDS}. With `max_tokens` it has to fit the context.")
    max_tokens: _Count | None = Field(None, description=f"New tokens, unset: {DEFAULT_MAX_TOKENS}; 0 with `echo`.")
    temperature: Annotated[float, Field(ge=0)] | None = Field(None, description="0 is greedy; unset: 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Draw among the likeliest with this.")
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="Draw among so many.")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="Above 1: say less twice."
    )
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Continuations of each prompt.")
    stop: str | _Texts | None = Field(None, description="Texts that end a continuation.")
    ignore_eos: bool | None = Field(None, description="Go on after the end of a text.")
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = Field(None, description="Equal seeds, equal draws.")
    logprobs: _Count | None = Field(None, description="Log-probabilities, with so many of the likeliest beside each.")
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    stream: bool | None = Field(None, description="Server-sent events, as tokens come.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Not used.")
    best_of: int | None = Field(None, description="Only the value of `n`.")
    suffix: str | None = Field(None, description='Only "".')
    frequency_penalty: float | None = Field(None, description="Only 0.")
    presence_penalty: float | None = Field(None, description="Only 0.")
    logit_bias: dict[str, float] | None = Field(None, description="Only {}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A request that can be answered.

    Args:
        prompts: As tokens.
        texts: The same as text.
        max_tokens: With the longest prompt at most the context.
        logprobs: How many of the likeliest tokens beside each; None: none are asked for.
        running_usage: Every event of a stream says what was used so far.
    """

    prompts: Sequence[Sequence[int]]
    texts: Sequence[str]
    max_tokens: int
    sampling: Sampling
    n: int
    stops: Sequence[str]
    ignore_end: bool
    seed: int
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool
    running_usage: bool


def read_body(content: bytes, limits: ServingConfig, model: str) -> CompletionBody:
    """The fields of a request, each checked by itself. Raises Refusal with what is wrong first."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise Refusal(400, "there is no body; a JSON object is expected")
    try:
        body = CompletionBody.model_validate_json(text)
    except ValidationError as error:
        raise _refusal(error) from error
    _check(body, limits, model)
    return body


def complete(body: CompletionBody, tokenizer: Tokenizer, context_length: int) -> CompletionRequest:
    """The request with its prompts as tokens. Raises Refusal when they are none, or too many."""
    prompts = [_tokens(prompt, tokenizer) for prompt in _prompts(body)]
    longest = max(map(len, prompts))
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = max(1, min(DEFAULT_MAX_TOKENS, context_length - longest))
    if longest + max_tokens > context_length:
        raise Refusal(
            400,
            f"the prompt has {longest} tokens and max_tokens is {max_tokens}: together they are "
            f"{longest + max_tokens}, more than the model's context of {context_length}",
            "max_tokens" if longest < context_length else "prompt",
            "context_length_exceeded",
        )
    options = body.stream_options or StreamOptions(include_usage=None, continuous_usage_stats=None)
    return CompletionRequest(
        prompts=prompts,
        texts=[tokenizer.decode(tokens) for tokens in prompts] if body.echo else [""] * len(prompts),
        max_tokens=max_tokens,
        sampling=_sampling(body),
        n=body.n or 1,
        stops=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        ignore_end=bool(body.ignore_eos),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        logprobs=body.logprobs,
        echo=bool(body.echo),
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        running_usage=bool(options.continuous_usage_stats),
    )


def _check(body: CompletionBody, limits: ServingConfig, model: str) -> None:
    """Raise Refusal for the first field that goes beyond the limits, or asks for what there is not."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    n, prompts = body.n or 1, len(_prompts(body))
    room = limits.max_batch + limits.max_queue
    if body.model is not None and body.model != model:
        message = f"the model {body.model!r} does not exist here; the one that does is {model!r}"
        raise Refusal(404, message, "model", "model_not_found")
    rules = (
        ("prompt", prompts > 0, "prompt is an empty list; at least one prompt is expected"),
        ("n", n <= limits.max_choices, f"n={n} must be at most {limits.max_choices}"),
        ("n" if n > 1 else "prompt", n * prompts <= room, f"{prompts} prompts, n={n}: more than {room} at a time"),
        (
            "logprobs",
            (body.logprobs or 0) <= limits.max_logprobs,
            f"logprobs={body.logprobs} must be at most {limits.max_logprobs}",
        ),
        ("stop", len(stops) <= limits.max_stops, f"{len(stops)} stop strings; at most {limits.max_stops} are allowed"),
        (
            "stop",
            all(0 < len(stop) <= limits.max_stop_characters for stop in stops),
            f"a stop string is empty or longer than {limits.max_stop_characters} characters",
        ),
        (
            "stream_options",
            body.stream_options is None or bool(body.stream),
            "stream_options have a meaning only with stream=true",
        ),
        ("best_of", body.best_of in (None, n), f"best_of={body.best_of} is not supported, only the value of n"),
        ("suffix", not body.suffix, "suffix is not supported"),
        ("logit_bias", not body.logit_bias, "logit_bias is not supported"),
        *(
            (name, not getattr(body, name), f"{name}={getattr(body, name)} is not supported, only 0")
            for name in ("frequency_penalty", "presence_penalty")
        ),
    )
    for param, holds, message in rules:
        if not holds:
            raise Refusal(400, message, param, "invalid_value")


def _prompts(body: CompletionBody) -> Sequence[str | Sequence[int]]:
    """One or several prompts as a list of them."""
    prompt: Any = body.prompt
    return [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt


def _tokens(prompt: str | Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    if isinstance(prompt, str):
        try:
            tokens: Sequence[int] = tokenizer.encode(prompt).tolist()
        except DataError as error:
            raise Refusal(400, f"prompt: {error}", "prompt", "invalid_value") from error
    else:
        tokens = prompt
        stranger = next((token for token in tokens if token >= tokenizer.vocab_size), None)
        if stranger is not None:
            message = f"prompt: {stranger} is no token; there are {tokenizer.vocab_size}, numbered from 0"
            raise Refusal(400, message, "prompt", "invalid_value")
    if not tokens:
        end = tokenizer.end_of_text
        hint = "" if end is None else f'; to begin a new text send its end-of-text token, [{end}] or "<|endoftext|>"'
        raise Refusal(400, f"the prompt is empty; at least one token is expected{hint}", "prompt", "invalid_value")
    return tokens


def _sampling(body: CompletionBody) -> Sampling:
    try:
        return Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        )
    except ConfigError as error:
        raise Refusal(400, str(error), code="invalid_value") from error


def _refusal(error: ValidationError) -> Refusal:
    """The first thing that pydantic found, in words that name the field, what was expected and what came."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, place = first["type"], [str(part) for part in first["loc"]]
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    if not place:
        return Refusal(400, f"the body is {_shown(first['input'])}; a JSON object is expected", code="invalid_json")
    param = place[0]
    if kind == "extra_forbidden":
        return Refusal(400, f"{'.'.join(place)} is not supported", param, "unsupported_parameter")
    if kind == "missing":
        return Refusal(400, f"{'.'.join(place)} is missing", param, "missing_parameter")
    if param == "prompt":
        message = f"prompt is {_shown(first['input'])}; expected {PROMPT_KINDS}"
    else:
        message = f"{param}: {first['msg']}; got {_shown(first['input'])}"
    return Refusal(400, message, param, "invalid_type" if kind.endswith("_type") else "invalid_value")


def _shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]} ..."
