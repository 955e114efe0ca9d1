"""The model that a server is held to: loaded here, asked, and let go before the server takes the memory."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import torch

from job.data.tokenizer import Tokenizer
from job.errors import ConfigError
from job.model.decoder import Decoder
from job.model.gpt import GPT
from job.serving.testing.expected import Expected, expect
from job.serving.testing.plan import Plan
from job.serving.testing.prompts import mixed_prompts

log = structlog.get_logger(__name__)

MOST_PROMPTS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a server is asked, and what it should answer.

    Args:
        plan: The given one, with lengths that the model has room for.
        prompts: Of the load.
        expected: Of the checks; empty where no model is known.
        parameters: How many the model has; None where no model is known.
    """

    plan: Plan
    prompts: Sequence[str]
    expected: Sequence[Expected] = ()
    parameters: int | None = None


def without_model(
    plan: Plan, given: Sequence[str], context_length: int | None, characters_per_token: float
) -> Reference:
    """Prompts alone: the server's own answers will have to agree with each other."""
    fitted = fit(plan, context_length) if context_length else plan
    count, longest = _count(fitted), fitted.longest_prompt
    prompts = given or mixed_prompts(count, longest, fitted.seed, None, characters_per_token)
    return Reference(plan=fitted, prompts=prompts)


def with_model(
    plan: Plan,
    given: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    advance: Callable[[], None],
) -> Reference:
    """Prompts, and what the model makes of the first of them.

    Raises:
        ConfigError: A given prompt leaves no room for an answer.
        DataError: A given prompt has a character that the tokenizer does not know.
    """
    fitted = fit(plan, model.context_length)
    prompts = given or mixed_prompts(_count(fitted), fitted.longest_prompt, fitted.seed, tokenizer)
    _require_room(prompts, tokenizer, model.context_length - fitted.max_tokens)
    decoder = Decoder(model, dtype)
    expected = []
    for prompt in list(dict.fromkeys(prompts))[: fitted.checked]:
        expected.append(expect(decoder, tokenizer, prompt, fitted.max_tokens, tokenizer.end_of_text))
        advance()
    return Reference(plan=fitted, prompts=prompts, expected=expected, parameters=model.parameter_count)


def free_memory() -> None:
    """Give back what a model took that nobody holds any more; on a GPU the server needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fit(plan: Plan, context_length: int) -> Plan:
    """The plan with answers of half a context at most, and prompts that leave room for them."""
    max_tokens = min(plan.max_tokens, max(1, context_length // 2))
    longest = max(1, min(plan.longest_prompt, context_length - max_tokens))
    if (max_tokens, longest) != (plan.max_tokens, plan.longest_prompt):
        log.warning("lengths fitted to the context", context=context_length, max_tokens=max_tokens, prompts=longest)
    return replace(plan, max_tokens=max_tokens, longest_prompt=longest)


def _count(plan: Plan) -> int:
    """Prompts to make; a load of more requests takes them in turn."""
    return max(plan.checked, min(plan.requests, MOST_PROMPTS))


def _require_room(prompts: Sequence[str], tokenizer: Tokenizer, room: int) -> None:
    for number, prompt in enumerate(prompts, 1):
        tokens = len(tokenizer.encode(prompt))
        if not 1 <= tokens <= room:
            raise ConfigError(
                f"prompt {number} of --prompts has {tokens} tokens, expected 1 to {room} beside the answer"
            )
