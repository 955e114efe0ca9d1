"""All checks of a served model, in the order in which they make sense; one that cannot be done says why."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog

from job.infra.progress import Progress
from job.serving.testing import answers
from job.serving.testing.answers import Check, Subject, perform
from job.serving.testing.client import ServeClient
from job.serving.testing.golden import Golden
from job.serving.testing.reference import Reference
from job.serving.testing.refusals import refusals

log = structlog.get_logger(__name__)

NO_MODEL = "needs the model itself: --weights or --run"
NOT_KNOWN = "none are known of these weights"


def check_answers(
    client: ServeClient,
    model: str,
    reference: Reference,
    golden: Sequence[Golden],
    with_key: bool,
    advance: Callable[[], None],
    progress: Progress,
) -> list[Check]:
    """What came of each check.

    Args:
        golden: Known answers of these weights.
        with_key: Whether the server wants a key.
        advance: Called between checks; may raise to stop.
    """
    max_tokens, prompts = reference.plan.max_tokens, reference.prompts[: reference.plan.checked]
    subject = Subject(client=client, model=model, expected=list(reference.expected), max_tokens=max_tokens)
    checks = _checks(subject, bool(reference.expected), prompts, golden, with_key)
    progress.phase("checking", len(checks), "checks")
    found: list[Check] = []
    for name, check in checks.items():
        advance()
        found.append(Check(name, None, check) if isinstance(check, str) else perform(name, check))
        one = found[-1]
        (log.error if one.passed is False else log.info)("check", name=name, passed=one.passed, detail=one.detail)
        progress.advance(1)
        if not subject.expected:
            break  # it does not answer
    return found


def _checks(
    subject: Subject, known: bool, prompts: Sequence[str], golden: Sequence[Golden], with_key: bool
) -> Mapping[str, Callable[[], str] | str]:
    """By name: what to do, or why it cannot be done."""
    first: dict[str, Callable[[], str] | str] = {
        "greedy answers are the model's own": partial(answers.greedy, subject),
        "token ids equal text": partial(answers.token_ids, subject),
    }
    if not known:
        first = {"the server answers": partial(answers.own_answers, subject, prompts), **dict.fromkeys(first, NO_MODEL)}
        first["greedy answers repeat"] = partial(answers.greedy, subject)
    return first | {
        "the model is listed": partial(answers.model_is_listed, subject),
        "streaming equals not streaming": partial(answers.streaming, subject),
        "answers do not depend on others": partial(answers.batch_independence, subject),
        "many prompts in one request": partial(answers.many_prompts, subject),
        "n choices": partial(answers.several_choices, subject),
        "stop strings": partial(answers.stop_strings, subject),
        "seeds": partial(answers.seeds, subject),
        "echo and log-probabilities": partial(answers.echo, subject),
        "known answers": partial(answers.known_answers, subject, golden) if golden else NOT_KNOWN,
        "bad requests are refused": partial(refusals, subject, with_key),
    }
