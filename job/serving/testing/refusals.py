"""Bad requests, each of which has to be refused in OpenAI's words, with the server as well as before."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from job.serving.testing.answers import Subject, Wrong
from job.serving.testing.client import COMPLETIONS

ANY_4XX = frozenset(range(400, 500))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """A request that no server should do.

    Args:
        content: The body; None when there is none.
        statuses: Those that say rightly what is wrong.
    """

    name: str
    content: bytes | None = None
    method: str = "POST"
    path: str = COMPLETIONS
    headers: Mapping[str, str] = field(default_factory=dict)
    statuses: frozenset[int] = ANY_4XX


def bad_requests(model: str, with_key: bool) -> list[Bad]:
    """Everything that is tried on a server of `model`; of keys only where there is one."""
    good: dict[str, Any] = {"model": model, "prompt": "a", "max_tokens": 1}
    refused = frozenset({400, 422})
    changed: dict[str, dict[str, Any]] = {
        "a prompt of a number": {"prompt": 3},
        "a prompt of objects": {"prompt": [{"text": "a"}]},
        "a prompt of null": {"prompt": None},
        "an empty list of prompts": {"prompt": []},
        "a token outside the vocabulary": {"prompt": [2**31]},
        "a negative token": {"prompt": [-1]},
        "tokens that are fractions": {"prompt": [0.5]},
        "a prompt far longer than the context": {"prompt": [0] * 20_000},
        "max_tokens below 0": {"max_tokens": -1},
        "max_tokens beyond any context": {"max_tokens": 10**9},
        "max_tokens that are text": {"max_tokens": "many"},
        "a temperature below 0": {"temperature": -0.5},
        "a temperature that is text": {"temperature": "hot"},
        "top_p above 1": {"top_p": 1.5},
        "top_p below 0": {"top_p": -0.1},
        "n of 0": {"n": 0},
        "n of a million": {"n": 10**6},
        "logprobs of 1000": {"logprobs": 1000},
        "logprobs below 0": {"logprobs": -1},
        "a stop that is a number": {"stop": 3},
        "a seed that is text": {"seed": "first"},
        "stream that is text": {"stream": "yes"},
    }
    found = [Bad(name=name, content=_json(good | change), statuses=refused) for name, change in changed.items()]
    found += [
        Bad(name="no prompt", content=_json({"model": model, "max_tokens": 1}), statuses=refused),
        Bad(name="another model", content=_json(good | {"model": "no-such-model"}), statuses=frozenset({404, 400})),
        Bad(name="no body", content=b""),
        Bad(name="broken JSON", content=b'{"model": "'),
        Bad(name="no object", content=b"[1, 2]"),
        Bad(name="JSON a hundred thousand levels deep", content=b"[" * 100_000),
        Bad(name="invalid UTF-8", content=b'{"prompt": "\xff\xfe"}'),
        Bad(name="GET instead of POST", method="GET", statuses=frozenset({405})),
        Bad(name="an unknown path", method="GET", path="/v1/nothing", statuses=frozenset({404})),
    ]
    if with_key:
        wrong = {"Authorization": "Bearer wrong"}
        found.append(Bad(name="a wrong key", content=_json(good), headers=wrong, statuses=frozenset({401})))
    return found


def refusals(subject: Subject, with_key: bool) -> str:
    """Every bad request is refused with a 4xx and an error in OpenAI's shape; after all a good one is answered."""
    tried = bad_requests(subject.model, with_key)
    for bad in tried:
        answer = subject.client.request(bad.method, bad.path, bad.content, bad.headers)
        if answer.status not in bad.statuses:
            expected = "4xx" if bad.statuses == ANY_4XX else " or ".join(map(str, sorted(bad.statuses)))
            raise Wrong(f"{bad.name}: expected status {expected}, got {answer.status}: {answer.content[:200]!r}")
        error = answer.json().get("error")
        if not (isinstance(error, dict) and isinstance(error.get("message"), str) and {"type", "code"} <= error.keys()):
            raise Wrong(f"{bad.name}: status {answer.status} without OpenAI's error: {answer.content[:200]!r}")
    if difference := subject.expected[0].contradicts(subject.ask(subject.expected[0].prompt)["choices"][0]["text"]):
        raise Wrong(f"after bad requests: {difference}")
    return f"{len(tried)} kinds"


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
