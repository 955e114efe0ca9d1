"""A real Prometheus and a real Pushgateway on this machine, for as long as a test looks at them."""

import json
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.integration.command import get
from tests.ports import free_ports

Found = TypeVar("Found")
PATIENCE = 60.0  # seconds


def free_port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]


def eventually(look: Callable[[], Found], patience: float = PATIENCE) -> Found:
    """What `look` finds once it is something; fails after so many seconds."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


@contextmanager
def running(program: str, folder: Path, *arguments: str) -> Iterator[str]:
    """A server of Prometheus' family, ready, at the address that it is given; its log lies in `folder`."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    address = f"127.0.0.1:{free_port()}"
    with (folder / f"{program}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--web.listen-address={address}", *arguments], stdout=log, stderr=log, cwd=folder
        )
    try:
        eventually(lambda: answers(f"http://{address}/-/ready"))
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether somebody says 200 there."""
    try:
        return get(url)[0] == 200
    except OSError:
        return False


@contextmanager
def prometheus(folder: Path, rules: Path, job: str, gateway: str) -> Iterator["Prometheus"]:
    """One that looks every second at a job and at a Pushgateway, as docker/ and PodMonitor have it."""
    scrapes = [
        {"job_name": "gpt-pretrain-live", "static_configs": [{"targets": [job]}]},
        {"job_name": "pushgateway", "honor_labels": True, "static_configs": [{"targets": [gateway]}]},
    ]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    arguments = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}")
    with running("prometheus", folder, *arguments) as address:
        yield Prometheus(address)


class Prometheus:
    """Its query API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API."""
        status, body = get(f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert (status, answer["status"]) == (200, "success"), body
        return answer["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Values now, by what labels of theirs tell them apart in a test: job, run, phase or reason."""
        found = self.ask("query", query=expression)["result"]
        names = ("job", "run", "phase", "reason", "alertname")
        return {
            ".".join(series["metric"][name] for name in names if name in series["metric"]): float(series["value"][1])
            for series in found
        }
