"""The container engine by its own command line: containers, volumes and networks that go when a test is over."""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIMIT = 300.0  # seconds: only guards against hangs


def docker(
    *words: str, check: bool = True, limit: float = LIMIT, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the engine's command line, with more in its environment; `check` raises with what it said."""
    command = [os.environ.get("DOCKER", "docker"), *words]
    env = {**os.environ, **(environ or {})}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=env)
    if check and ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()}")
    return ended


def missing(image: str) -> str:
    """Why tests of the image cannot run here; empty when they can."""
    if shutil.which(os.environ.get("DOCKER", "docker")) is None or docker("info", check=False).returncode:
        return "no container engine answers"
    if docker("image", "inspect", image, check=False).returncode:
        return f"there is no image {image}: make image s3-image, with the same TORCH"
    return ""


@dataclass(frozen=True)
class Container:
    """A container that was started; it stays after its end until it is removed."""

    name: str

    def state(self) -> dict[str, Any]:
        """What the engine knows about it: Status, ExitCode, OOMKilled, Health."""
        state: dict[str, Any] = json.loads(docker("inspect", self.name, "--format", "{{json .State}}").stdout)
        return state

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit code, when it has ended."""
        return int(docker("wait", self.name, limit=limit).stdout)

    def logs(self) -> list[dict[str, Any]]:
        """What it logged, and on stdout the summary: each line that is a JSON object."""
        said = docker("logs", self.name)
        lines = [*said.stderr.splitlines(), *said.stdout.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self) -> str:
        """All that it said, stderr first."""
        said = docker("logs", self.name)
        return said.stderr + said.stdout

    def summary(self) -> dict[str, Any]:
        """The one line of JSON that `train` ends with."""
        return next(line for line in reversed(self.logs()) if "status" in line and "run_uri" in line)

    def until(self, event: str, step: int = 0, limit: float = LIMIT) -> dict[str, Any]:
        """The first logged event of that name at this step or later, waited for."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            ended = self.state()["Status"] == "exited"  # before the look, so that no last line is missed
            for line in self.logs():
                if line.get("event") == event and line.get("step", 0) >= step:
                    return line
            if ended:
                break
            time.sleep(0.2)
        raise AssertionError(f"{self.name} never said {event} at step {step} or later:\n{self.text()[-3000:]}")

    def port(self, inside: int) -> int:
        """The port on loopback that leads to a published one."""
        return int(docker("port", self.name, str(inside)).stdout.splitlines()[0].rpartition(":")[2])


class Engine:
    """Starts containers and remembers everything it made."""

    def __init__(self) -> None:
        self._made: list[tuple[str, str]] = []

    def run(self, image: str, *arguments: str, flags: tuple[str, ...] = (), **environ: str) -> Container:
        """Start `image` in the background.

        Args:
            arguments: Of the program in it.
            flags: Of `docker run`.
            environ: Variables inside.
        """
        name = self._named("container")
        variables = [word for key, value in environ.items() for word in ("--env", f"{key}={value}")]
        docker("run", "--detach", "--name", name, *variables, *flags, image, *arguments)
        return Container(name)

    def volume(self) -> str:
        """An empty named volume."""
        name = self._named("volume")
        docker("volume", "create", name)
        return name

    def network(self) -> str:
        """A network of its own, on which containers find each other by name."""
        name = self._named("network")
        docker("network", "create", name)
        return name

    def clear(self) -> None:
        """Remove everything, containers before what they use."""
        for kind, name in reversed(self._made):
            words = ["rm", "--force", "--volumes", name] if kind == "container" else [kind, "rm", "--force", name]
            docker(*(words if kind != "network" else ["network", "rm", name]), check=False)

    def _named(self, kind: str) -> str:
        name = f"gpt-job-test-{uuid.uuid4().hex[:12]}"
        self._made.append((kind, name))
        return name
