"""`serve-test` on a real server: what passes, and that each thing that can be wrong with a server is found."""

import json
import re
import signal
import time
from dataclasses import replace

import pytest

from job.config_file import load_config
from job.data.alphabets import ByteTokenizer
from job.data.huggingface_tokenizer import huggingface_files
from job.errors import ConfigError, JobError
from job.infra.progress import SilentProgress
from job.infra.signals import StopSignal
from job.infra.storage import open_store
from job.serve_test import Target, serve_test
from job.serving.testing.client import ServeClient
from job.serving.testing.plan import Plan, Thresholds
from job.serving.testing.process import ServerProcess, wait_until_ready
from tests.bending_proxy import Bend, BendingProxy
from tests.integration.command import World, files
from tests.unit.weights_support import model, write_huggingface

KEY = "a-key-for-the-test"
PLAN = Plan(concurrencies=(2,), requests=4, max_tokens=10, longest_prompt=40, checked=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny model of bytes with random weights, sure of each of its tokens."""
    found = model(vocab_size=257, n_layer=1, n_head=2, n_embd=16, context_length=64)
    folder = write_huggingface(tmp_path_factory.mktemp("weights"), found)
    for name, content in huggingface_files(ByteTokenizer(), 64).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    """The address of a real server of them."""
    log = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(["--weights", str(weights), "--model-name", "tiny"], log) as process:
        url = process.wait_for_url(60, lambda: None)
        wait_until_ready(ServeClient(url), process, 60, lambda: None)
        yield url


@pytest.fixture
def tested(weights, tmp_path):
    """The report of a test of a server that is there."""

    def test(url, plan=PLAN, known=True, **thresholds):
        plan = replace(plan, thresholds=Thresholds(**thresholds))
        target = Target(weights=str(weights) if known else None, known=known, url=url)
        config = load_config(None, overrides=["runtime.device=cpu"]).config
        return serve_test(config, target, plan, [], str(tmp_path / "report"), StopSignal(1.0), SilentProgress())

    return test


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """What the command does with a server of its own, with a key: its world and its ending."""
    world = World.create(tmp_path_factory.mktemp("whole"))
    flags = (
        "--requests",
        "6",
        "--concurrency",
        "1,3",
        "--rate",
        "50",
        "--max-tokens",
        "12",
        "--max-ready-seconds",
        "100",
    )
    (world.folder / "run.toml").write_text("")
    return world, world.gpt_job("serve-test", "--weights", str(weights), *flags, GPT_JOB_API_KEY=KEY)


def test_the_command_passes(whole):
    """A server that answers right ends the test with 0, in every place that tells."""
    _, ending = whole

    assert ending.code == 0, ending.stderr
    assert ending.codes == {0}
    assert ending.summary["status"] == "passed"
    assert ending.summary["requests"] == {"completed": 18, "failed": 0}


def test_every_check_was_done(whole):
    """With the model at hand nothing is left out but known answers, of which random weights have none."""
    world, _ = whole
    report = json.loads((world.folder / "serve-test/serve-test.json").read_text())

    assert {check["name"]: check["passed"] for check in report["checks"]} == {
        "greedy answers are the model's own": True,
        "token ids equal text": True,
        "the model is listed": True,
        "streaming equals not streaming": True,
        "answers do not depend on others": True,
        "many prompts in one request": True,
        "n choices": True,
        "stop strings": True,
        "seeds": True,
        "echo and log-probabilities": True,
        "known answers": None,
        "bad requests are refused": True,
        "the server stays up, and ends when it is asked": True,
    }


def test_loads_of_the_command(whole):
    """Each load is in the report with vLLM's fields, every token counted."""
    world, _ = whole
    loads = json.loads((world.folder / "serve-test/serve-test.json").read_text())["loads"]

    assert [(load["name"], load["completed"]) for load in loads] == [
        ("1 at a time", 6),
        ("3 at a time", 6),
        ("50 a second", 6),
    ]
    assert [load["total_output_tokens"] for load in loads] == [72, 72, 72]
    assert all(0 < load["median_ttft_ms"] <= load["p99_ttft_ms"] <= load["p99_e2el_ms"] for load in loads)
    assert loads[0]["max_concurrent_requests"] == 1
    assert 1 < loads[1]["max_concurrent_requests"] <= 3


def test_what_the_command_leaves(whole):
    """JSON, page, metrics and the server's log lie under the report's address, and the key in none of them."""
    world, ending = whole
    left = files(world.folder / "serve-test")

    assert sorted(left) == ["metrics.prom", "serve-test.html", "serve-test.json", "server.log"]
    assert KEY.encode() not in b"".join(left.values()) + ending.stderr.encode() + ending.stdout.encode()
    assert b"pretrain_serve_test_passed 1.0" in left["metrics.prom"]
    assert b'pretrain_serve_test_checks{outcome="failed"} 0.0' in left["metrics.prom"]


def changed(text, place=5):
    """The text with another character there."""
    return text[:place] + ("b" if text[place : place + 1] == "a" else "a") + text[place + 1 :]


def another_text(answer, _):
    answer["choices"][0]["text"] = changed(answer["choices"][0]["text"])
    return answer


def another_chunk(chunks, _):
    spoken = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["text"]]
    spoken[1]["text"] = changed(spoken[1]["text"], 0)
    return chunks


def without_usage(chunks, _):
    return [chunk for chunk in chunks if chunk["choices"]]


def another_reason(chunks, _):
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] and "stop"
    return chunks


def without(*names):
    return lambda body, _: {name: value for name, value in body.items() if name not in names}


def confused_by_company(body, under_way):
    prompt = body.get("prompt")
    return {**body, "prompt": changed(prompt, 0)} if under_way > 1 and isinstance(prompt, str) else body


def other_tokens(body, _):
    tokens = body.get("prompt")
    ids = isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens)
    return {**body, "prompt": [*tokens[:-1], (tokens[-1] + 1) % 100]} if ids else body


def in_another_order(answer, _):
    texts = [choice["text"] for choice in answer["choices"]]
    for choice, text in zip(answer["choices"], reversed(texts), strict=True):
        choice["text"] = text
    return answer


def one_choice_less(answer, body):
    return {**answer, "choices": answer["choices"][:2]} if body.get("n") else answer


def other_logprobs(answer, body):
    if body.get("echo"):
        given = answer["choices"][0]["logprobs"]["token_logprobs"]
        answer["choices"][0]["logprobs"]["token_logprobs"] = [value and value - 0.5 for value in given]
    return answer


def one_token_more(answer, _):
    answer["usage"]["completion_tokens"] += 1
    answer["usage"]["total_tokens"] += 1
    return answer


GREEDY, STREAM = "greedy answers are the model's own", "streaming equals not streaming"
BENDS = {
    "a token": (Bend(answered=another_text), GREEDY),
    "a count": (Bend(answered=one_token_more), GREEDY),
    "token ids": (Bend(asked=other_tokens), "token ids equal text"),
    "a streamed token": (Bend(streamed=another_chunk), STREAM),
    "a stream's usage": (Bend(streamed=without_usage), STREAM),
    "a stream's end": (Bend(streamed=another_reason), STREAM),
    "company": (Bend(asked=confused_by_company), "answers do not depend on others"),
    "order": (Bend(answered=in_another_order), "many prompts in one request"),
    "a choice": (Bend(answered=one_choice_less), "n choices"),
    "stop": (Bend(asked=without("stop")), "stop strings"),
    "seed": (Bend(asked=without("seed")), "seeds"),
    "log-probabilities": (Bend(answered=other_logprobs), "echo and log-probabilities"),
    "a refusal's status": (Bend(refused=lambda one: (500, one[1])), "bad requests are refused"),
    "a refusal's shape": (Bend(refused=lambda one: (one[0], b'{"detail": "no"}')), "bad requests are refused"),
    "an unknown model": (
        Bend(asked=lambda body, _: {**body, "model": "tiny"}),
        "bad requests are refused",
    ),
}


PER_COMMIT = {"a token", "company", "a refusal's status"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in PER_COMMIT)) for name in BENDS]
)
def test_a_server_that_is_wrong_fails(server, tested, name):
    """One thing bent on the way fails the test, with the check that stands for it."""
    bend, check = BENDS[name]
    with BendingProxy(server, bend) as proxy:
        report = tested(proxy.url)

    assert report["status"] == "failed"
    assert check in [one["name"] for one in report["checks"] if one["passed"] is False]
    assert any(reason.startswith(f"{check}: ") for reason in report["reasons"])


def test_an_unbent_server_passes(server, tested):
    """The proxy that bends nothing changes no verdict, with the model at hand and without."""
    with BendingProxy(server, Bend()) as proxy:
        assert [tested(proxy.url, known=known)["status"] for known in (True, False)] == ["passed", "passed"]


def test_without_the_model_answers_are_held_to_each_other(server, tested):
    """Where nobody knows the model, a streamed token that is another is found all the same."""
    with BendingProxy(server, Bend(streamed=another_chunk)) as proxy:
        report = tested(proxy.url, known=False)

    assert [one["name"] for one in report["checks"] if one["passed"] is False] == [STREAM, "stop strings"]


def slowly(body, _):
    if body.get("ignore_eos"):  # it is of the load
        time.sleep(0.15)
    return body


def test_a_slow_server_fails_its_thresholds(server, tested):
    """A server that takes 0.15 s longer for each of two requests at a time reaches no threshold that asks for more."""
    asked = {"max_ttft_p99": 100, "max_e2el_p99": 60_000, "min_requests_per_second": 20, "min_tokens_per_second": 0.1}
    with BendingProxy(server, Bend(asked=slowly)) as proxy:
        report = tested(proxy.url, **asked)

    assert report["status"] == "failed"
    assert {one["name"] for one in report["thresholds"] if not one["passed"]} == {
        "max_ttft_p99",
        "min_requests_per_second",
    }


def test_failures_count(server, tested):
    """Requests that are refused under load are failures, more of which than allowed fail the test; reasons are told."""

    def refuse_loads(chunks, body):
        return [{"error": {"message": "no more", "type": "x", "code": None}}] if body.get("ignore_eos") else chunks

    with BendingProxy(server, Bend(streamed=refuse_loads)) as proxy:
        report = tested(proxy.url, max_failures=3)

    assert report["loads"][0]["failed"] == 4
    assert "no more" in report["loads"][0]["errors"][0]
    assert report["reasons"] == ["max_failures 3: found 4"]


def test_a_server_that_does_not_start(weights, tmp_path):
    """A server that ends at once ends the test with its own exit code and last words, and the report says so."""
    target = Target(weights=str(weights), arguments=["--weights", str(weights), "--max-batch", "0"])
    config = load_config(None, overrides=["runtime.device=cpu"]).config
    with pytest.raises(ConfigError, match="--max-batch 0 must be at least 1") as error:
        serve_test(config, target, PLAN, [], str(tmp_path), StopSignal(1.0), SilentProgress())

    report = json.loads((tmp_path / "serve-test.json").read_text())
    assert (report["status"], report["reasons"]) == ("broken off", [str(error.value)])
    assert "--max-batch 0" in (tmp_path / "server.log").read_text()


def test_a_server_that_is_never_ready(tested):
    """An address where nobody becomes ready in time is said to be so."""
    with pytest.raises(JobError, match=re.escape("http://127.0.0.1:9 is not ready after 0.2 s")):
        tested("http://127.0.0.1:9", replace(PLAN, ready_seconds=0.2))


def test_a_test_that_is_stopped(weights, tmp_path):
    """SIGTERM ends the test with 75, takes the server down, and leaves that word in the report."""
    world = World.create(tmp_path / "world")
    (world.folder / "run.toml").write_text("")
    flags = ("--weights", str(weights), "--concurrency", "1", "--requests", "100000", "--max-tokens", "12")
    with world.job("serve-test", *flags) as job:
        job.until("check", name="bad requests are refused")
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()
    report = json.loads((world.folder / "serve-test/serve-test.json").read_text())

    assert (ending.code, report["status"]) == (75, "interrupted")
    assert ending.codes == {75}
    with pytest.raises(JobError, match="Connection"):
        ServeClient(report["server"]["url"]).request("GET", "/healthz")


def test_a_report_in_a_bucket(server, weights, s3_environment):
    """With a bucket's address the whole report lies there."""
    uri = s3_environment.fresh_uri()
    config = load_config(None, overrides=["runtime.device=cpu", "storage.addressing_style=path"]).config
    target = Target(known=False, url=server)
    serve_test(config, target, PLAN, ["a prompt"], uri, StopSignal(1.0), SilentProgress())
    store = open_store(uri, config.storage)

    assert store.keys("") == ["metrics.prom", "serve-test.html", "serve-test.json"]
    assert json.loads(store.read("serve-test.json"))["status"] == "passed"


def test_a_sweep_has_loads_of_its_own(world):
    """A sweep beside other loads is refused as wrong usage, before anything starts."""
    assert world.gpt_job("serve-test", "--sweep", "3", "--rate", "2").code == 2
