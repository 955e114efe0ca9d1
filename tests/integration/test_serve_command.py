"""`gpt-job serve` in a process of its own: how it starts, what it says, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

from job.config_file import load_config
from job.errors import ConfigError, NotFoundError
from job.generate import Decoding, generate
from job.infra.healthcheck import ADDRESS_FILE
from job.infra.signals import StopSignal
from job.serve import serve
from job.serving.settings import ServingConfig
from tests.integration.command import get
from tests.serving_support import posted

PATIENCE = 120  # seconds


def slowly(seconds):
    """A launcher: every step takes so much longer, so that a test can meet an answer on its way."""
    return (
        "-c",
        "import time; from job.model.decoder import Decoder; step = Decoder.step\n"
        f"Decoder.step = lambda *what: (time.sleep({seconds}), step(*what))[1]\n"
        "import job.cli; job.cli.main(prog_name='gpt-job')",
    )


def ask(url, key=None, **body):
    """The first choice's text, of a request that may take long."""
    header = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), header)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE) as answer:
        return json.load(answer)["choices"][0]["text"]


@pytest.fixture(scope="module")
def story(finished, tmp_path_factory):
    """What a server said and answered from its start to a drain, while an answer was under way."""
    found = {}
    address = tmp_path_factory.mktemp("container") / "address"
    environ = {"GPT_JOB_API_KEY": "test-key-123", ADDRESS_FILE: str(address)}
    with finished.world.job("serve", "--port", "0", launcher=slowly(0.05), **environ) as job:
        listening = job.until("listening")["url"]
        found["before"] = get(f"{listening}/readyz")[0], get(f"{listening}/healthz")[0]
        found["serving"] = job.until("serving")
        url = found["serving"]["url"]
        found["ready"] = get(f"{url}/readyz")[0]
        check = [sys.executable, "-m", "job.infra.healthcheck"]
        found["check"] = subprocess.check_output(check, env={**os.environ, ADDRESS_FILE: str(address)}, text=True)
        found["without a key"] = get(f"{url}/v1/models")[0]
        found["greedy"] = ask(url, "test-key-123", prompt="line 1", max_tokens=30, temperature=0, ignore_eos=True)
        late = {"prompt": "l", "max_tokens": 60, "n": 8, "ignore_eos": True}
        asking = threading.Thread(target=lambda: found.update(late=ask(url, "test-key-123", **late)))
        asking.start()
        while 'phase="decoding"} 0.0' in get(f"{url}/metrics")[1]:
            time.sleep(0.002)
        job.process.send_signal(signal.SIGTERM)
        asking.join()
        found["ending"] = job.ending()
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.socket() as other:
            found["after"] = other.connect_ex((host, int(port)))
        found["address"] = address.exists()
    return found


def test_it_says_when_it_is_ready(story):
    """The port answers before the model is there, and the log says when it is, where, and under which name."""
    assert story["before"][1] == 200
    assert story["ready"] == 200
    assert story["serving"]["model"] == "run"
    assert story["serving"]["seconds"] > 0


def test_the_container_finds_it_healthy(story):
    """The image's health check finds the server's own /healthz on whatever port; it leaves no address behind."""
    assert story["check"] == "ok\n"
    assert not story["address"]


def test_it_answers_as_generate_does(story, finished, tmp_path):
    """A greedy answer over HTTP is what `generate` writes for the same run."""
    config = replace(load_config(None).config, run_uri=str(finished.world.run))
    with (tmp_path / "out").open("w+") as out:
        generate(config, "last", ["line 1"], Decoding(max_new_tokens=30), True, out)
        out.seek(0)
        assert json.load(out)["text"] == story["greedy"]


def test_it_asks_for_the_key(story):
    """With GPT_JOB_API_KEY in the environment only those who show it are answered; the log does not show it."""
    assert story["without a key"] == 401
    assert "test-key-123" not in story["ending"].stderr


def test_sigterm_finishes_what_was_begun(story):
    """An answer that was under way at SIGTERM comes whole; then the process ends with 0, and says so everywhere."""
    assert len(story["late"].encode("utf-8", "replace")) >= 60
    assert story["ending"].codes == {0}
    assert story["ending"].reason == "SIGTERM received"
    assert story["ending"].events("finishing what was begun; once more leaves at once")[0]["continuations"] > 0
    assert story["after"] != 0


def test_a_grace_that_is_too_short(finished):
    """An answer that takes longer than the grace is cut, and the process ends with 75 and says how many there were."""
    grace = ("--set", "runtime.grace_seconds=2.0")
    with finished.world.job("serve", "--port", "0", *grace, launcher=slowly(0.2)) as job:
        url = job.until("serving")["url"]
        content = posted(json.dumps({"prompt": "l", "max_tokens": 60, "ignore_eos": True}).encode())
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(content)
            while 'phase="decoding"} 0.0' in get(f"{url}/metrics")[1]:
                time.sleep(0.002)
            job.process.send_signal(signal.SIGTERM)
            ending = job.ending()

    assert ending.codes == {75}
    assert ending.reason == "Interrupted: SIGTERM received; the grace was too short, 1 requests were cut off"


REFUSALS = {
    "no run": (("--run", "nowhere"), 66, "nowhere"),
    "no slots": (("--max-batch", "0"), 78, "--max-batch 0 must be at least 1"),
    "no port": (("--port", "70000"), 78, "--port 70000 must be at most 65535"),
    "no time": (("--header-seconds", "0"), 78, "--header-seconds 0.0 must be greater than 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_served(finished, name):
    """A wrong flag, an address that cannot be had, or a model that is not there ends the process with its code."""
    arguments, code, words = REFUSALS[name]
    ending = finished.world.gpt_job("serve", *arguments)

    assert ending.codes == {code}
    assert words in ending.reason


def test_no_weights(finished):
    """Weights that are not there end it with the error of whoever looked for them."""
    with pytest.raises(NotFoundError, match="nowhere"):
        refused(finished, weights="nowhere")


def test_an_empty_key_is_refused(finished, monkeypatch):
    """A key that is set and empty serves nobody: it would be no key at all."""
    monkeypatch.setenv("GPT_JOB_API_KEY", "")
    with pytest.raises(ConfigError, match="GPT_JOB_API_KEY is set and empty"):
        refused(finished)


def test_a_taken_port(finished):
    """A port that another process has is refused with its number, before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen there"):
            refused(finished, port=port)


def refused(finished, weights=None, port=0):
    """Serve, in this process, what cannot be served."""
    config = replace(load_config(None).config, run_uri=str(finished.world.run))
    serve(config, "last", weights, ServingConfig(port=port), StopSignal(0.0))
