"""Checks of what a server answers: each one thing that its clients rely on, and what it is held to."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from job.serving.testing.client import AnswerError, ServeClient
from job.serving.testing.expected import Expected, expect_of_answer
from job.serving.testing.golden import Golden

NEARLY = 0.02  # nats a token; a served log-probability may be rounded otherwise
SEEDS = 3
SURE = -20.0  # nats: two draws of such a text are equal once in 500 million times


class Wrong(Exception):
    """A check that failed, and why."""


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one check: passed, failed, or not done for want of something (None)."""

    name: str
    passed: bool | None
    detail: str

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A served model and what it should say.

    Args:
        model: Its name there.
        expected: Prompts and their greedy answers, at most `max_tokens` long.
        at_once: Requests that are sent at the same time where that matters.
    """

    client: ServeClient
    model: str
    expected: list[Expected]
    max_tokens: int
    at_once: int = 8

    def ask(self, prompt: object, **more: Any) -> dict[str, Any]:
        """A greedy completion, unless `more` says otherwise."""
        return self.client.complete(**self.body(prompt, **more))

    def body(self, prompt: object, **more: Any) -> dict[str, Any]:
        """A request for one."""
        return {"model": self.model, "prompt": prompt, "max_tokens": self.max_tokens, "temperature": 0, **more}


def perform(name: str, check: Callable[[], str]) -> Check:
    """Do a check; what it returns is said of it when it passes."""
    try:
        return Check(name, True, check())
    except (Wrong, AnswerError) as error:
        return Check(name, False, str(error))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Check(name, False, f"the answer has another shape than OpenAI's: {type(error).__name__}: {error}")


def own_answers(subject: Subject, prompts: Sequence[str]) -> str:
    """The server's own answers become what its other answers are held to."""
    for prompt in prompts:
        subject.expected.append(expect_of_answer(prompt, subject.ask(prompt, logprobs=2)))
    return f"{len(prompts)} prompts"


def model_is_listed(subject: Subject) -> str:
    """/v1/models names the model."""
    listed = [one["id"] for one in subject.client.request("GET", "/v1/models").json()["data"]]
    _hold(subject.model in listed, f"/v1/models lists {listed}, not {subject.model}")
    return subject.model


def greedy(subject: Subject) -> str:
    """Asked one after the other, every prompt has its expected answer."""
    for one in subject.expected:
        answer = subject.ask(one.prompt)
        _same(one, answer["choices"][0]["text"])
        usage = answer["usage"]
        _hold(
            answer["choices"][0]["text"] != one.text or usage["completion_tokens"] == len(one.ends),
            f"usage says {usage['completion_tokens']} tokens, the answer has {len(one.ends)}",
        )
        _hold(
            one.prompt_tokens is None or usage["prompt_tokens"] == len(one.prompt_tokens),
            f"usage says {usage['prompt_tokens']} tokens of the prompt, expected {len(one.prompt_tokens or ())}",
        )
        _hold(
            usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"],
            f"usage does not add up: {usage}",
        )
    return f"{len(subject.expected)} prompts of {_lengths(subject.expected)}"


def streaming(subject: Subject) -> str:
    """Streamed, an answer has the same text, finish reason and usage."""
    chunks = 0
    for one in subject.expected:
        whole = subject.ask(one.prompt)
        found = list(subject.client.stream(**subject.body(one.prompt), stream_options={"include_usage": True}))
        choices = [chunk["choices"][0] for chunk in found if chunk["choices"]]
        text = "".join(choice["text"] for choice in choices)
        _same(one, text)
        chunks += len(choices)
        _hold(found[-1]["usage"] is not None, "the last chunk has no usage, though it was asked for")
        if text == whole["choices"][0]["text"]:
            _equal("finish_reason", choices[-1]["finish_reason"], whole["choices"][0]["finish_reason"])
            _equal("usage", _counts(found[-1]["usage"]), _counts(whole["usage"]))
    return f"{chunks} chunks"


def batch_independence(subject: Subject) -> str:
    """Asked all at once, every prompt has the answer that it has alone."""
    wanted = [one for one in subject.expected for _ in range(2)]
    with ThreadPoolExecutor(subject.at_once) as pool:
        answers = list(pool.map(lambda one: subject.ask(one.prompt), wanted))
    for one, answer in zip(wanted, answers, strict=True):
        _same(one, answer["choices"][0]["text"])
    return f"{len(wanted)} requests, {subject.at_once} at a time"


def many_prompts(subject: Subject) -> str:
    """Several prompts in one request have their answers in order, numbered."""
    some = subject.expected[:3]
    answer = subject.ask([one.prompt for one in some])
    _equal("indexes", [choice["index"] for choice in answer["choices"]], list(range(len(some))))
    for one, choice in zip(some, answer["choices"], strict=True):
        _same(one, choice["text"])
    return f"{len(some)} prompts"


def token_ids(subject: Subject) -> str:
    """A prompt of token ids is the text that they stand for."""
    for one in subject.expected[:3]:
        _same(one, subject.ask(list(one.prompt_tokens or ()))["choices"][0]["text"])
    return f"{len(subject.expected[:3])} prompts"


def several_choices(subject: Subject) -> str:
    """`n` 3 brings three numbered choices, all of them the greedy one."""
    one = subject.expected[0]
    choices = subject.ask(one.prompt, n=3)["choices"]
    _equal("indexes", sorted(choice["index"] for choice in choices), [0, 1, 2])
    for choice in choices:
        _same(one, choice["text"])
    return "3 choices"


def stop_strings(subject: Subject) -> str:
    """A stop string ends the answer before it, streamed or not."""
    one, stop = _with_stop(subject.expected)
    cut = one.text[: one.text.index(stop)]
    answer = subject.ask(one.prompt, stop=[stop])["choices"][0]
    streamed = [chunk["choices"][0] for chunk in subject.client.stream(**subject.body(one.prompt, stop=[stop]))]
    for text in (answer["text"], "".join(choice["text"] for choice in streamed)):
        if text != cut and (difference := one.contradicts(text + one.text[len(text) :])):
            raise Wrong(f"stop {stop!r}: {difference}")
        _hold(stop not in text, f"stop {stop!r} is part of the answer {text!r}")
    if answer["text"] == cut:
        _equal(f"finish_reason at stop {stop!r}", answer["finish_reason"], "stop")
    return f"{stop!r}"


def seeds(subject: Subject) -> str:
    """The same seed draws the same text again, alone or among others; other seeds draw others."""
    prompt = subject.expected[0].prompt
    drawing = {"temperature": 1.0, "logprobs": 1}
    first = [subject.ask(prompt, seed=seed, **drawing)["choices"][0] for seed in range(SEEDS)]
    with ThreadPoolExecutor(subject.at_once) as pool:
        again = list(pool.map(lambda seed: subject.ask(prompt, seed=seed, **drawing)["choices"][0], range(SEEDS)))
    for seed, (one, other) in enumerate(zip(first, again, strict=True)):
        _equal(f"seed {seed}, drawn again", other["text"], one["text"])
    likely = max(sum(choice["logprobs"]["token_logprobs"]) for choice in first)
    texts = {choice["text"] for choice in first}
    _hold(len(texts) > 1 or likely > SURE, f"{SEEDS} seeds draw the same unlikely text")
    return f"{SEEDS} seeds, {len(texts)} texts"


def echo(subject: Subject) -> str:
    """`echo` gives the prompt back, with the log-probability that the model gives each of its tokens."""
    apart, known = 0.0, False
    for one in subject.expected:
        choice = subject.ask(one.prompt, echo=True, logprobs=1, max_tokens=1)["choices"][0]
        _hold(choice["text"].startswith(one.prompt), f"echo of {one.prompt[:40]!r} begins {choice['text'][:40]!r}")
        given = choice["logprobs"]["token_logprobs"]
        _hold(given[0] is None, f"the first token's log-probability is {given[0]}, expected null: nothing is before it")
        if one.prompt_logprobs is None:
            continue
        known = True
        found = given[1 : 1 + len(one.prompt_logprobs)]
        _equal("log-probabilities of the prompt", len(found), len(one.prompt_logprobs))
        apart = max([apart, *(abs(a - b) for a, b in zip(found, one.prompt_logprobs, strict=True))])
        allowed = NEARLY if one.tie < NEARLY else one.tie
        _hold(apart <= allowed, f"log-probabilities of {one.prompt[:40]!r} are {apart:.4f} nats from the model's")
    return f"log-probabilities at most {apart:.1g} nats from the model's" if known else "log-probabilities are there"


def known_answers(subject: Subject, golden: Sequence[Golden]) -> str:
    """Known answers of released weights come out."""
    for one in golden:
        answer = subject.ask(one.prompt, max_tokens=one.tokens)["choices"][0]["text"]
        _equal(f"answer to {one.prompt!r}", answer, one.text)
    return f"{len(golden)} known answers"


def _same(one: Expected, text: str) -> None:
    if difference := one.contradicts(text):
        raise Wrong(difference)


def _equal(what: str, found: object, expected: object) -> None:
    _hold(found == expected, f"{what}: expected {expected!r}, got {found!r}")


def _hold(right: bool, otherwise: str) -> None:
    if not right:
        raise Wrong(otherwise)


def _counts(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


def _with_stop(expected: Sequence[Expected]) -> tuple[Expected, str]:
    """An answer, and two characters from its middle that are not in it before."""
    for one in expected:
        for place in range(len(one.text) // 3, len(one.text) - 1):
            stop = one.text[place : place + 2]
            if one.text.index(stop) == place and "\ufffd" not in stop:
                return one, stop
    return expected[0], expected[0].text[:1]


def _lengths(expected: Sequence[Expected]) -> str:
    lengths = [len(one.prompt_tokens) for one in expected if one.prompt_tokens is not None]
    return f"{min(lengths)} to {max(lengths)} tokens" if lengths else "mixed lengths"
