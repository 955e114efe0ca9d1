"""The pod of the Kubernetes Job, run by `podman kube play`: no cluster, but its own spec, config map and limits."""

import json
import os
import shlex
import shutil
import subprocess
import time
import uuid

import pytest
import yaml

from tests.image.engine import docker
from tests.image.small_run import SETTINGS
from tests.k8s.manifests import render

PODMAN = shlex.split(os.environ.get("PODMAN", "podman"))  # such as "podman --runtime=runc"
UNKNOWN_TO_PODMAN = {"tolerations", "serviceAccountName"}


def podman(*words, check=True):
    """Run podman's command line."""
    environ = {key: value for key, value in os.environ.items() if key != "DOCKER_CONFIG"}  # another engine's
    command = [*PODMAN, *words]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=300, env=environ)


@pytest.fixture(scope="module")
def pod_image(image):
    """The image, as podman has it."""
    if shutil.which(PODMAN[0]) is None:
        pytest.skip("no podman here")
    known = docker("image", "inspect", image, "--format", "{{.Id}}").stdout.strip().removeprefix("sha256:")
    if podman("image", "inspect", image, "--format", "{{.Id}}", check=False).stdout.strip() != known:
        engine = shlex.quote(os.environ.get("DOCKER", "docker"))
        load = f"{engine} save {shlex.quote(image)} | {shlex.join(PODMAN)} load"
        subprocess.run(["sh", "-c", load], check=True, capture_output=True, timeout=300)
    return image


@pytest.fixture
def play(pod_image, tmp_path):
    """Starts the Job's pod on a folder of this machine as its volume; returns the name of its container."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    started = []

    def start(**changes):
        name = f"gpt-job-test-{uuid.uuid4().hex[:12]}"
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump_all(documents(name, pod_image, tmp_path / "runs", SETTINGS | changes)))
        started.append(path)
        podman("kube", "play", str(path))
        return f"{name}-job"

    yield start
    for path in started:
        podman("kube", "down", str(path), check=False)


def documents(name, image, runs, settings):
    """The pod and its config maps as the overlay renders them, with a folder in the place of the bucket."""
    manifests = render("local-cpu")
    spec = next(m for m in manifests if m["kind"] == "Job")["spec"]["template"]["spec"]
    spec = {key: value for key, value in spec.items() if key not in UNKNOWN_TO_PODMAN}
    container = spec["containers"][0]
    container["image"] = image
    container["args"] += ["--set=run_uri=/runs/pod", *(f"--set={key}={value}" for key, value in settings.items())]
    container["envFrom"] = [source for source in container["envFrom"] if "configMapRef" in source]
    container["volumeMounts"].append({"name": "runs", "mountPath": "/runs"})
    spec["volumes"].append({"name": "runs", "hostPath": {"path": str(runs), "type": "Directory"}})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    return [*(m for m in manifests if m["kind"] == "ConfigMap"), pod]


def logged(container):
    """What it logged, as JSON objects."""
    said = podman("logs", container)
    return [json.loads(line) for line in (said.stderr + said.stdout).splitlines() if line.startswith("{")]


def until_saved(container, step):
    """Wait for a checkpoint at this step or later."""
    deadline = time.monotonic() + 120
    while not any(line.get("event") == "checkpoint saved" and line["step"] >= step for line in logged(container)):
        assert time.monotonic() < deadline, logged(container)[-3:]
        time.sleep(0.2)


def test_the_jobs_pod_trains_to_its_end(play):
    """Its user, read-only root, dropped rights, memory limit and config map do not keep it from training."""
    container = play()
    code = int(podman("wait", container).stdout)
    facts = json.loads(podman("inspect", container).stdout)[0]

    assert code == 0
    assert any(line.get("status") == "complete" for line in logged(container))
    assert facts["Config"]["User"] == "10001:10001"
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["Memory"] == 4 * 2**30
    assert not facts["EffectiveCaps"]


def test_a_pod_that_is_stopped_ends_with_75_and_the_next_one_goes_on(play):
    """What a drained node does: SIGTERM, a checkpoint, 75; the pod after it begins there and ends with 0."""
    first = play(**{"training.max_steps": 3000})
    until_saved(first, 100)
    podman("stop", "--time", "60", first)
    stopped = int(podman("inspect", first, "--format", "{{.State.ExitCode}}").stdout)
    second = play(**{"training.max_steps": 3000})
    code = int(podman("wait", second).stdout)
    continued = next(line for line in logged(second) if line.get("event") == "run continued")

    assert (stopped, code) == (75, 0)
    assert continued["step"] >= 100
