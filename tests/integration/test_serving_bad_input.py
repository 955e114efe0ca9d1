"""What is wrong with a request is said in OpenAI's shape, with 4xx, and nothing else comes of it."""

import json
import socket

import pytest

from tests.serving_support import CONTEXT, NAME, posted, serving

GOOD = {"model": NAME, "prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def running():
    with serving(max_body_bytes=20_000, body_seconds=0.5, header_seconds=0.5) as found:
        yield found
        assert found.post(GOOD).status_code == 200
        assert set(found.outcomes()) <= {"completed", "refused", "disconnected"}


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


# What is sent, the status, the field at fault, and words of the message.
FIELDS = {
    "prompt missing": (without("prompt"), 400, "prompt", "prompt is missing"),
    "prompt null": ({"prompt": None}, 400, "prompt", "prompt is null; expected a string"),
    "prompt empty": ({"prompt": ""}, 400, "prompt", "the prompt is empty"),
    "prompts none": ({"prompt": []}, 400, "prompt", "empty list"),
    "prompt without tokens": ({"prompt": [[]]}, 400, "prompt", "the prompt is empty"),
    "one prompt of two empty": ({"prompt": ["a", ""]}, 400, "prompt", "the prompt is empty"),
    "prompt a number": ({"prompt": 5}, 400, "prompt", "prompt is 5; expected a string, a list of strings"),
    "prompt an object": ({"prompt": {"a": 1}}, 400, "prompt", "expected a string"),
    "prompt mixed": ({"prompt": ["a", 1]}, 400, "prompt", "expected a string"),
    "prompt of bools": ({"prompt": [True]}, 400, "prompt", "expected a string"),
    "prompt of fractions": ({"prompt": [1.5]}, 400, "prompt", "expected a string"),
    "prompt too long": ({"prompt": "x" * CONTEXT}, 400, "prompt", f"more than the model's context of {CONTEXT}"),
    "much too long": ({"prompt": "x" * 15_000}, 400, "prompt", "the prompt has 15000 tokens"),
    "a token too large": ({"prompt": [3, 257]}, 400, "prompt", "257 is no token; there are 257"),
    "a token far too large": ({"prompt": [10**30]}, 400, "prompt", ""),
    "a negative token": ({"prompt": [-1]}, 400, "prompt", ""),
    "too many prompts": ({"prompt": ["a"] * 25}, 400, "prompt", "more than 24 at a time"),
    "max_tokens huge": ({"max_tokens": 10**6}, 400, "max_tokens", f"context of {CONTEXT}"),
    "max_tokens beyond numbers": ({"max_tokens": 10**40}, 400, "max_tokens", ""),
    "max_tokens negative": ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0; got -1"),
    "max_tokens a fraction": ({"max_tokens": 1.5}, 400, "max_tokens", "got 1.5"),
    "max_tokens text": ({"max_tokens": "5"}, 400, "max_tokens", 'got "5"'),
    "max_tokens true": ({"max_tokens": True}, 400, "max_tokens", "got true"),
    "temperature negative": ({"temperature": -0.1}, 400, "temperature", "got -0.1"),
    "temperature text": ({"temperature": "hot"}, 400, "temperature", 'got "hot"'),
    "temperature beyond numbers": ({"temperature": 10**400}, 400, "temperature", ""),
    "top_p zero": ({"top_p": 0}, 400, "top_p", "greater than 0"),
    "top_p above one": ({"top_p": 1.1}, 400, "top_p", "less than or equal to 1"),
    "top_k zero": ({"top_k": 0}, 400, "top_k", ""),
    "top_k negative": ({"top_k": -5}, 400, "top_k", "got -5"),
    "n zero": ({"n": 0}, 400, "n", "got 0"),
    "n too large": ({"n": 9}, 400, "n", "n=9 must be at most 8"),
    "n times prompts too many": ({"n": 8, "prompt": ["a"] * 4}, 400, "n", "4 prompts, n=8: more than 24 at a time"),
    "logprobs too many": ({"logprobs": 6}, 400, "logprobs", "logprobs=6 must be at most 5"),
    "logprobs a bool": ({"logprobs": True}, 400, "logprobs", "got true"),
    "logprobs negative": ({"logprobs": -1}, 400, "logprobs", ""),
    "stop a number": ({"stop": 3}, 400, "stop", ""),
    "stop empty": ({"stop": ""}, 400, "stop", "a stop string is empty"),
    "too many stops": ({"stop": ["x"] * 17}, 400, "stop", "17 stop strings"),
    "a stop too long": ({"stop": "x" * 129}, 400, "stop", "longer than 128 characters"),
    "a penalty of nothing": ({"repetition_penalty": 1e-300}, 400, "repetition_penalty", "got 1e-300"),
    "a penalty beyond numbers": ({"repetition_penalty": 1e300}, 400, "repetition_penalty", "got 1e+300"),
    "seed beyond numbers": ({"seed": 1 << 63}, 400, "seed", ""),
    "seed text": ({"seed": "x"}, 400, "seed", 'got "x"'),
    "stream text": ({"stream": "yes"}, 400, "stream", 'got "yes"'),
    "stream_options alone": (
        {"stream_options": {"include_usage": True}},
        400,
        "stream_options",
        "only with stream=true",
    ),
    "stream_options unknown": (
        {"stream": True, "stream_options": {"x": 1}},
        400,
        "stream_options",
        "x is not supported",
    ),
    "unknown field": ({"max_token": 5}, 400, "max_token", "max_token is not supported"),
    "messages": ({"messages": []}, 400, "messages", "messages is not supported"),
    "best_of": ({"best_of": 3}, 400, "best_of", "best_of=3 is not supported"),
    "suffix": ({"suffix": "end"}, 400, "suffix", "suffix is not supported"),
    "frequency_penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "only 0"),
    "presence_penalty": ({"presence_penalty": -1}, 400, "presence_penalty", "only 0"),
    "logit_bias": ({"logit_bias": {"5": 1}}, 400, "logit_bias", "logit_bias is not supported"),
    "unknown model": ({"model": "gpt-4"}, 404, "model", "the model 'gpt-4' does not exist here; the one that does"),
    "model a number": ({"model": 4}, 400, "model", "got 4"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(running, name):
    """A field that is wrong is named, with what was expected and what came."""
    change, status, param, words = FIELDS[name]
    body = change if "missing" in name else {**GOOD, **change}
    answer = running.post(body)
    error = answer.json()["error"]

    assert (answer.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 400


NEUTRAL = (
    {"best_of": 1, "suffix": "", "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me"},
    dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "logprobs", "echo", "stream")),
    dict.fromkeys(("best_of", "suffix", "logit_bias", "stream_options", "model", "ignore_eos", "repetition_penalty")),
    {"temperature": 1e-300}, {"top_k": 10**30}, {"seed": -(1 << 63)}, {"top_p": 1e-300}, {"temperature": 1e300},
    {"temperature": 1e300, "top_k": 2}, {"repetition_penalty": 0.01}, {"repetition_penalty": 100},
    {"stop": []}, {"prompt": "\u0000\U0010ffff"}, {"n": 8},
)  # fmt: skip


@pytest.mark.parametrize("change", NEUTRAL, ids=str)
def test_what_is_let_pass(running, change):
    """Neutral values, nulls, and values at the edge of what has a meaning are answered."""
    assert running.post({**GOOD, **change}).status_code == 200


BODIES = {
    "no body": (b"", "there is no body"),
    "blank": (b"  \n", "there is no body"),
    "cut JSON": (b'{"prompt": "a"', "not JSON"),
    "no JSON": (b"prompt=a", "not JSON"),
    "a list": (b"[]", "the body is []; a JSON object is expected"),
    "a string": (b'"a"', "a JSON object is expected"),
    "null": (b"null", "a JSON object is expected"),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', "temperature"),
    "Infinity": (b'{"prompt": "a", "temperature": Infinity}', "temperature"),
    "1e999": (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "not UTF-8 at byte 12"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8 at byte 0"),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}', "not JSON"),
    "half a pair in a stop": (b'{"prompt": "a", "stop": "\\udc00"}', "not JSON"),
    "deep lists": (b'{"prompt": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "not JSON"),
    "deep objects": (b'{"prompt": ' + b'{"a":' * 3_000 + b"1" + b"}" * 3_000 + b"}", "not JSON"),
    "deep and cut": (b"[" * 19_000, "not JSON"),
    "a long number": (b'{"prompt": "a", "n": ' + b"9" * 15_000 + b"}", ""),
    "a zero byte": (b'{"prompt": "a"}\x00', "not JSON"),
    "two objects": (b'{"prompt": "a"}{"prompt": "a"}', "not JSON"),
    "a thousand unknown fields": (json.dumps({f"f{n}": n for n in range(1000)}).encode(), "prompt is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bodies(running, name):
    """A body that is no JSON object in UTF-8 is refused with what it is."""
    content, words = BODIES[name]
    answer = running.post(content)

    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_body_that_is_too_large(running):
    """More bytes than allowed are refused with 413, whether the length is said before or comes out on the way."""
    large = b'{"prompt": "' + b"x" * 20_000 + b'"}'

    def chunks():
        yield from (large[at : at + 1000] for at in range(0, len(large), 1000))

    for content in (large, chunks()):
        answer = running.http.post(f"{running.url}/v1/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "the body is larger than 20000 bytes"


PATHS = (
    ("GET", "/v1/completions", 405), ("PUT", "/v1/completions", 405), ("POST", "/v1/models", 405), ("GET", "/", 404),
    ("GET", "/v1/models/other", 404), ("POST", "/v1/chat/completions", 404), ("POST", "/metrics", 405),
    ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404), ("GET", "/v1/completions/", 404), ("BREW", "/healthz", 405),
)  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
def test_paths(running, method, path, status):
    """Paths that there are not, and methods that they have not, are refused in the same shape."""
    answer = running.http.request(method, running.url + path, follow_redirects=False)

    assert answer.status_code == status
    assert answer.json()["error"]["message"]


WIRE = {
    "no HTTP": (b"hello\r\n\r\n", b"400"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), b"400"),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
    "a length that is none": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", b"400"),
    "a negative length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    "two lengths": (posted(b"{}", "Content-Length: 5"), b"400"),
    "chunks that are none": (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400",
    ),
    "headers without end": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 5000, b"400"),
    "one long header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"b" * 100_000, b"400"),
    "a long path": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "a slow header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", b"408"),
    "a slow body": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{", b"408"),
    "a gigabyte": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n{", b"413"),
    "more than numbers": (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 20 + b"\r\n\r\n{", b"413",
    ),
    "an upgrade": (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n", b"200",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIRE)
def test_on_the_wire(running, name):
    """What is hardly HTTP, too large or too slow gets its answer as JSON, and the connection ends."""
    content, status = WIRE[name]
    answer = running.send(content)

    assert answer.split(b" ")[1] == status
    if status != b"200":
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_connection_without_a_word(running):
    """A client that connects and says nothing is let go after the header's deadline."""
    assert running.send(b"") == b""


def test_a_client_that_goes_before_its_body(running):
    """A connection that closes in the middle of a body leaves nothing behind."""
    with socket.create_connection(running.address) as connection:
        connection.sendall(posted(json.dumps(GOOD).encode())[:-5])

    assert running.post(GOOD).status_code == 200


def test_pipelined_requests(running):
    """Requests that are sent without waiting are answered in their order, one after the other."""
    bodies = [json.dumps({**GOOD, "max_tokens": count, "ignore_eos": True}).encode() for count in (3, 1, 2)]
    content = b"".join(posted(body) for body in bodies[:2]) + posted(bodies[2], "Connection: close")
    answers = running.send(content).split(b"HTTP/1.1 200")[1:]
    counts = [json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] for answer in answers]

    assert counts == [3, 1, 2]
