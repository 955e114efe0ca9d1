"""Completions over HTTP, asked for with OpenAI's own client: what comes back, alone and in company."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import AuthenticationError, InternalServerError

from job.data.alphabets import END_OF_TEXT
from tests.serving_support import CONTEXT, NAME, TOKENIZER, posted, serving, until

PROMPTS = ("a", "Hello, world", "x" * 100, "line 1\nline 2\n", "\u00e9\u20ac", "0123456789" * 15)


@pytest.fixture(scope="module")
def running():
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def client(running):
    return running.client()


@pytest.fixture(scope="module")
def complete(client):
    """One choice's facts."""

    def ask(prompt, **settings):
        return client.completions.create(model=NAME, prompt=prompt, **settings).choices[0]

    return ask


def test_greedy_is_the_models_own(running, complete):
    """At temperature 0 the answer is what `generate` writes."""
    for prompt in PROMPTS:
        assert complete(prompt, max_tokens=20, temperature=0).text == running.greedy(prompt, 20)


def test_company_changes_nothing(complete):
    """Answers are the same alone and among others that come and go, drawn ones too."""

    def ask(number):
        prompt = PROMPTS[number % len(PROMPTS)]
        return complete(prompt, max_tokens=10 + 3 * number, temperature=number % 3 / 2, seed=number).text

    alone = [ask(number) for number in range(18)]
    with ThreadPoolExecutor(18) as pool:
        together = list(pool.map(ask, range(18)))

    assert together == alone


def test_at_fixed_width_company_changes_no_bit():
    """With the fixed width even the log-probabilities are equal to the last bit, alone and among others."""
    with serving(fixed_width=True, max_batch=4) as found:
        client = found.client()

        def ask(number):
            choice = client.completions.create(
                model=NAME,
                prompt=PROMPTS[number % len(PROMPTS)],
                max_tokens=8 + number,
                temperature=1,
                seed=1,
                logprobs=1,
            ).choices[0]
            return choice.text, choice.logprobs.token_logprobs

        alone = [ask(number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))

    assert together == alone


@pytest.mark.parametrize("settings", [{}, {"n": 3}, {"echo": True}, {"stop": ["e", "\u00e9t"]}], ids=str)
def test_a_stream_is_the_whole_in_pieces(client, settings):
    """Streamed pieces add up to what comes without a stream: texts, log-probabilities, reasons and usage."""
    asked = {"model": NAME, "prompt": "Hello", "max_tokens": 40, "seed": 4, "logprobs": 2, **settings}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    found = {choice.index: {"text": "", "tokens": [], "offsets": [], "reasons": []} for choice in whole.choices}
    for chunk in chunks:
        for choice in chunk.choices:
            facts = found[choice.index]
            facts["text"] += choice.text
            facts["tokens"] += choice.logprobs.token_logprobs
            facts["offsets"] += choice.logprobs.text_offset
            facts["reasons"].append(choice.finish_reason)

    for choice in whole.choices:
        facts = found[choice.index]
        assert facts["text"] == choice.text
        assert facts["tokens"] == choice.logprobs.token_logprobs
        assert facts["offsets"] == choice.logprobs.text_offset
        assert facts["reasons"] == [None] * (len(facts["reasons"]) - 1) + [choice.finish_reason]
    assert len(chunks) > 2
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}


def test_a_stream_as_it_is_on_the_wire(running):
    """Events are `data:` and JSON, with usage null but in the last one, and [DONE] at the end."""
    asked = {"prompt": "a", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    answer = running.post(asked)
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n")]
    facts = [json.loads(event) for event in events[:-2]]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["[DONE]", ""]
    assert [fact["usage"] is None for fact in facts] == [True] * (len(facts) - 1) + [False]
    assert facts[-1]["choices"] == []


def test_running_usage(running):
    """Usage in every event, where vLLM's word for that is given."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = running.post(
        {"prompt": "a", "max_tokens": 4, "temperature": 0, "stream": True, "stream_options": options}
    ).text
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in text.split("\n\n")[:-2]]

    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 4)


def test_choices_draw_for_themselves(client):
    """n continuations of each prompt come in order, each with draws of its own, and repeat with the seed."""
    asked = {"model": NAME, "prompt": ["a", "b"], "n": 4, "max_tokens": 12, "seed": 7}
    first, again = client.completions.create(**asked), client.completions.create(**asked)

    assert [choice.index for choice in first.choices] == list(range(8))
    assert [choice.text for choice in first.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in first.choices}) == 8
    assert first.usage.prompt_tokens == 2
    assert first.usage.total_tokens == 2 + first.usage.completion_tokens


def test_without_a_seed_each_is_another(complete):
    """Requests without a seed draw differently."""
    assert complete("a", max_tokens=30).text != complete("a", max_tokens=30).text


def test_prompts_as_tokens(client):
    """A prompt may be text, tokens, or a list of either: the answer is the same."""
    texts = ["Hello", "line 1"]
    tokens = [TOKENIZER.encode(text).tolist() for text in texts]

    def answers(prompt):
        found = client.completions.create(model=NAME, prompt=prompt, max_tokens=9, temperature=0)
        return [choice.text for choice in found.choices]

    assert answers(texts) == answers(tokens) == answers(texts[0]) + answers(tokens[1])


def test_stop_strings(running, complete):
    """The text ends before a stop string, and the reason is `stop`; without one it is `length`."""
    free = running.greedy("Hello", 30)
    stop = free[8:10]
    choice = complete("Hello", max_tokens=30, temperature=0, stop=stop, logprobs=0)

    assert choice.text == free[: free.index(stop)]
    assert choice.finish_reason == "stop"
    assert max(choice.logprobs.text_offset, default=-1) < len(choice.text) or not choice.text
    assert complete("Hello", max_tokens=5, temperature=0).finish_reason == "length"


def test_the_end_of_a_text(client):
    """The end-of-text token ends an answer with `stop`, is no part of it, and is passed over when asked for."""
    asked = {"model": NAME, "prompt": "a", "max_tokens": CONTEXT - 1, "temperature": 5.0, "seed": 3}
    ended = client.completions.create(**asked).choices[0]
    further = client.completions.create(**asked, extra_body={"ignore_eos": True})

    assert ended.finish_reason == "stop"
    assert further.choices[0].text.startswith(ended.text + END_OF_TEXT)
    assert further.usage.completion_tokens == CONTEXT - 1


def test_echo_scores_the_prompt(running, complete):
    """What lm-evaluation-harness asks for: the prompt's own log-probabilities, and whether each token is the best."""
    prompt = "Hello, world"
    for count in (0, 1):
        choice = complete(prompt, max_tokens=count, temperature=0, echo=True, logprobs=1)
        scores = choice.logprobs
        assert choice.text.startswith(prompt)
        assert len(scores.token_logprobs) == len(prompt) + count
        assert scores.token_logprobs[0] is scores.top_logprobs[0] is None
        assert scores.text_offset == list(range(len(prompt) + count))
        assert scores.tokens[: len(prompt)] == list(prompt)
    for token, logprob, top in list(zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True))[1:]:
        assert top[token] == logprob
    assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())


def test_echo_of_choices(client):
    """With several choices each begins with its own prompt."""
    found = client.completions.create(
        model=NAME, prompt=["ab", "cd"], n=2, max_tokens=3, echo=True, logprobs=0, extra_body={"ignore_eos": True}
    )

    assert [choice.text[:2] for choice in found.choices] == ["ab", "ab", "cd", "cd"]
    assert [len(choice.logprobs.tokens) for choice in found.choices] == [5] * 4


def test_parts_of_characters(client):
    """A token that is a part of a character is named by its bytes, and begins where its character does."""
    found = client.completions.create(model=NAME, prompt="\u20ac!", max_tokens=0, echo=True, logprobs=0)
    scores = found.choices[0].logprobs

    assert scores.tokens == [r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "!"]
    assert scores.text_offset == [0, 0, 0, 1]


def test_nothing_waits_for_nagle(running):
    """Connections send what they have at once: a piece that waited for the last one's receipt would cost 40 ms."""
    running.get("/healthz")
    connection = next(iter(running.server.server_state.connections))
    option = connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert option


def test_the_model_is_listed(client):
    """The one model is listed, and found by its name."""
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_the_key():
    """With a key only those who show it get an answer; health and metrics need none."""
    with serving(key="s3cret-key") as found:
        ask = {"model": NAME, "prompt": "a", "max_tokens": 1}
        for wrong in ("s3cret-kez", "x", "s3cret-key2", "\u00e9"):
            header = {"Authorization": f"Bearer {wrong}".encode()}
            assert found.post(ask, headers=header).status_code == 401
        assert found.post(ask).json()["error"]["code"] == "invalid_api_key"
        assert found.get("/v1/models").status_code == 401
        with pytest.raises(AuthenticationError):
            found.client(api_key="wrong").completions.create(**ask)
        assert found.client(api_key="s3cret-key").completions.create(**ask).choices
        assert {found.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")} == {200}
        assert until(lambda: found.outcomes() == {"unauthorized": 7, "completed": 1})


def test_more_than_there_is_room_for():
    """Beyond slots and queue a request is refused with 503 and when to ask again; the others are answered."""
    with serving(max_batch=2, max_queue=1, step_seconds=0.02) as found:
        client = found.client()

        def ask(_):
            try:
                return client.completions.create(model=NAME, prompt="a", max_tokens=40, extra_body={"ignore_eos": True})
            except InternalServerError as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        refused = [answer for answer in answers if isinstance(answer, InternalServerError)]

        assert len(refused) >= 3
        assert {error.status_code for error in refused} == {503}
        assert {error.response.headers["retry-after"] for error in refused} == {"1"}
        assert {answer.usage.completion_tokens for answer in answers if answer not in refused} == {40}
        assert until(lambda: found.outcomes() == {"busy": len(refused), "completed": 8 - len(refused)})
        assert client.with_options(max_retries=3).completions.create(model=NAME, prompt="a", max_tokens=1).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots(stream):
    """When a client closes its connection, all it held is free at the next step, queued choices too."""
    with serving(max_batch=2, max_queue=6, step_seconds=0.04) as found:
        body = {"prompt": "a", "max_tokens": 200, "n": 5, "ignore_eos": True, "stream": stream}
        with socket.create_connection(found.address) as connection:
            connection.sendall(posted(json.dumps(body).encode()))
            assert until(lambda: found.engine.outstanding == 5)
        assert until(lambda: found.engine.outstanding == 0, seconds=6)
        assert until(lambda: found.outcomes() == {"disconnected": 1})
        assert found.post({"prompt": "a", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream):
    """After its deadline a request is given up: with 503, or in a stream with an error as the last event."""
    seconds = 1.5 if stream else 0.3  # a stream has begun by then
    with serving(request_seconds=seconds, step_seconds=0.02) as found:
        answer = found.post({"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": stream})
        text = answer.text.removesuffix("data: [DONE]\n\n").strip().rpartition("data: ")[2]

        assert answer.status_code == (200 if stream else 503)
        assert json.loads(text)["error"]["code"] == "deadline"
        assert until(lambda: found.engine.outstanding == 0)
        assert until(lambda: found.outcomes() == {"deadline": 1})


def test_metrics_are_few(running):
    """However many requests of whatever kinds there were, the series are at most 200, in closed sets."""
    for number in range(60):
        running.post({"prompt": f"p{number}", "max_tokens": 1, f"field{number}": 1})
        running.get(f"/nowhere/{number}")
        running.post({"prompt": f"p{number}", "max_tokens": 1, "user": str(number)})
    lines = [line for line in running.get("/metrics").text.splitlines() if not line.startswith("#")]

    assert 50 < len(lines) <= 200
    assert "p59" not in "".join(lines)


def test_metrics_count(running):
    """Requests, tokens and times are counted."""

    def sample(name, **labels):
        return running.metrics.registry.get_sample_value(name, labels)

    def counts():
        return (
            sample("pretrain_serve_requests_total", outcome="completed"),
            sample("pretrain_serve_tokens_total", kind="prompt"),
            sample("pretrain_serve_tokens_total", kind="completion"),
            sample("pretrain_serve_time_to_first_token_seconds_count"),
            sample("pretrain_serve_request_duration_seconds_count"),
        )

    before = counts()
    running.post({"prompt": "abc", "max_tokens": 5, "n": 2, "ignore_eos": True})
    until(lambda: all(after > was for was, after in zip(before, counts(), strict=True)))

    assert [after - was for was, after in zip(before, counts(), strict=True)] == [1, 3, 10, 1, 1]
    assert until(lambda: sample("pretrain_serve_continuations", phase="decoding") == 0)
    assert sample("pretrain_serve_state", state="ready") == 1
