"""Every command of the job inside the image: its files, its compiler and its second process are there."""

import json
import time
import urllib.request

import pytest

from tests.image.engine import docker
from tests.image.small_run import ANY_USER, LOCKED, OFFLINE, settings

RUN = "runs/commands"
SHORT = {"run_uri": RUN, "training__max_steps": 60, "training__eval_every": 20}


@pytest.fixture(scope="module")
def volume(shared_engine, image):
    """A volume with a run that two processes have trained."""
    volume = shared_engine.volume()
    flags = (*LOCKED, *ANY_USER, *OFFLINE, "--volume", f"{volume}:/runs")
    arguments = ("train", "--processes", "2")
    container = shared_engine.run(image, *arguments, flags=flags, GPT_JOB_SET=settings(**SHORT))
    assert container.wait() == 0, container.text()
    assert container.summary()["status"] == "complete"
    return volume


@pytest.fixture
def ended(engine, image, volume):
    """Runs a command on that run, locked down and offline, to its end."""

    def run(*words):
        flags = (*LOCKED, *ANY_USER, *OFFLINE, "--volume", f"{volume}:/runs")
        container = engine.run(image, *words, flags=flags, GPT_JOB_SET=settings(**SHORT))
        return container.wait(), container

    return run


def test_two_processes_train_in_one_container(volume, image):
    """They share the work and say how many they were."""
    code = "import json, pathlib; print(pathlib.Path('/runs/commands/events.jsonl').read_text())"
    words = ["--rm", "--volume", f"{volume}:/runs", "--entrypoint", "python", image, "-c", code]
    events = [json.loads(line) for line in docker("run", *words).stdout.split("\n") if line]
    [started] = [event for event in events if event["event"] == "run started"]

    assert started["processes"] == 2


def test_the_report_is_drawn(ended, image, volume):
    """Its templates and fonts are in the image: a page with its plots is left beside the run."""
    code, container = ended("report", "--run", RUN)
    find = [
        "--rm",
        "--volume",
        f"{volume}:/runs",
        "--entrypoint",
        "sh",
        image,
        "-c",
        f"head -c 15 {RUN}/report/report.html",
    ]

    assert (code, "Traceback" in container.text()) == (0, False)
    assert docker("run", *find).stdout.lower().startswith("<!doctype html>")


def test_a_preflight_finds_nothing_wrong(ended):
    """Settings, corpus, compiler, memory, disk and storage of a container that is as it should be."""
    code, container = ended("check", "--json")
    answer = container.logs()[-1]

    assert (code, answer["code"]) == (0, 0)
    assert {"settings", "storage", "memory"} <= {finding["about"] for finding in answer["findings"]}


@pytest.mark.parametrize("command", ["ladder", "bench", "evaluate", "weights", "config"])
def test_help_needs_nothing(ended, command):
    """0, and an example or a list of what there is."""
    code, container = ended(command, "--help")

    assert (code, "Usage: gpt-job" in container.text()) == (0, True)


def test_a_tokenizer_is_trained_inside(engine, image):
    """bpe:N, whose library is an extra outside of the image."""
    flags = (*LOCKED, *ANY_USER, *OFFLINE)
    container = engine.run(
        image, "prepare", "--set", "data.tokenizer=bpe:300", "--set", "data.corpus=builtin:the-verdict", flags=flags
    )

    assert container.wait() == 0


def test_what_was_trained_passes_its_serve_test(ended):
    """A server is started in the container, its answers are the model's own, and the load leaves figures."""
    flags = ["--concurrency", "1", "--requests", "4", "--max-tokens", "8", "--checked", "2", "--longest-prompt", "16"]
    code, container = ended("serve-test", "--run", RUN, "--report-uri", "/runs/served", *flags)

    assert code == 0, container.text()


def test_a_server_is_seen_to_be_healthy(engine, image, volume):
    """Completions on a published port; the engine finds the server's health by itself."""
    flags = (
        *LOCKED,
        *ANY_USER,
        "--volume",
        f"{volume}:/runs",
        "--publish",
        "127.0.0.1::8000",
        "--health-interval",
        "1s",
    )
    container = engine.run(image, "serve", "--run", RUN, "--host", "0.0.0.0", flags=flags)
    container.until("serving")
    body = json.dumps({"prompt": "The", "max_tokens": 3, "temperature": 0}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{container.port(8000)}/v1/completions"
    answer = json.load(direct.open(url, body, timeout=60))
    for _ in range(200):  # it is asked before the server is there, too, and then finds no endpoint
        health = container.state()["Health"]
        if [each["Output"] for each in health["Log"]][-1:] == ["ok\n"]:
            break
        time.sleep(0.2)

    assert answer["usage"]["completion_tokens"] == 3
    assert (health["Status"], health["Log"][-1]["Output"]) == ("healthy", "ok\n")
    docker("stop", "--time", "40", container.name)
    assert container.state()["ExitCode"] == 0
