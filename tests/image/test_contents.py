"""What is in the image, and what the engine is told about it."""

import json
import re

import pytest
from packaging.utils import canonicalize_name

from tests.image.engine import docker
from tests.image.small_run import ANY_USER, LOCKED, OFFLINE
from tests.unit.test_image_files import locked

LARGEST = {"cpu": 2_050_000_000, "cuda": 10_000_000_000}  # bytes
COPYLEFT = re.compile(r"\bA?GPL|General Public", re.IGNORECASE)


@pytest.fixture(scope="module")
def facts(image):
    """What the engine says about the image."""
    return json.loads(docker("image", "inspect", image).stdout)[0]


@pytest.fixture(scope="module")
def inside(image):
    """Runs a line of Python inside: no network, nothing writable but memory, a user the image has never heard of."""

    def run(code, *flags):
        options = [*LOCKED, *ANY_USER, *OFFLINE, *flags]
        return docker("run", "--rm", *options, "--entrypoint", "python", image, "-c", code).stdout

    return run


def build(facts):
    """cpu or cuda."""
    return next(word for word in facts["Config"]["Env"] if word.startswith("GPT_JOB_IMAGE=")).rpartition("-")[2]


def test_it_runs_as_a_numbered_user(facts):
    """Not root, and by number."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", facts["Config"]["User"])


def test_the_program_is_the_first_process(facts):
    """No shell before it, SIGTERM stops it, and without a command it says what it can do."""
    config = facts["Config"]

    assert (config["Entrypoint"], config["Cmd"], config["StopSignal"]) == (["gpt-job"], ["--help"], "SIGTERM")


def test_the_health_check_needs_no_shell(facts):
    """CMD, not CMD-SHELL."""
    assert facts["Config"]["Healthcheck"]["Test"] == ["CMD", "python", "-m", "job.infra.healthcheck"]


def test_it_says_what_it_is(facts, inside):
    """Version and revision are labels, and the version is the package's own."""
    labels = {name.rpartition(".")[2]: value for name, value in facts["Config"]["Labels"].items()}
    installed = inside("from importlib.metadata import version; print(version('gpt-pretrain-job'))").strip()

    assert labels["version"] == installed
    assert re.match(r"[0-9a-f]{40}", labels["revision"])
    assert labels["licenses"] == "MIT"


def test_it_declares_no_volume(facts):
    """So that a run without a mount is seen to be one."""
    assert not facts["Config"].get("Volumes")


def test_its_size_is_bounded(facts):
    """A build that grows by a forgotten cache or a second torch is noticed."""
    assert facts["Size"] < LARGEST[build(facts)]


def test_everything_loads_offline_and_read_only(inside):
    """All that the job stands on is imported by an unknown user with no network and nothing to write to but memory."""
    names = (
        "torch, tiktoken, boto3, click, prometheus_client, structlog, safetensors, matplotlib, rich, uvicorn, jinja2"
    )
    names += ", zstandard, pyarrow, tokenizers, torch.utils.tensorboard"

    assert inside(f"import {names}; print(torch.__version__)").startswith("2.")


def test_it_holds_what_its_lock_names(facts, inside):
    """Package by package and version by version, so that the lock's SBOM and audit are the image's."""
    code = (
        "import json; from importlib.metadata import distributions;"
        "print(json.dumps({d.metadata['Name']: d.version for d in distributions()}))"
    )
    installed = {canonicalize_name(name): version for name, version in json.loads(inside(code)).items()}
    own = installed.pop("gpt-pretrain-job")

    assert installed == {
        name: version for name, (version, _) in locked(f"docker/requirements-{build(facts)}.lock").items()
    }
    assert own == facts["Config"]["Labels"]["org.opencontainers.image.version"]


def test_nothing_of_root_can_be_written(image):
    """Without a read-only root the job's user finds three folders that it may write to, and none of them is root's."""
    find = (
        r"find / -xdev \( -path /proc -o -path /sys \) -prune -o -writable -not -type l -printf '%p %u\n' 2>/dev/null"
    )
    said = docker("run", "--rm", *ANY_USER, "--entrypoint", "sh", image, "-c", f"{find} 2>/dev/null; true").stdout

    assert {tuple(line.split()) for line in said.splitlines()} == {("/runs", "job"), ("/cache", "job"), ("/tmp", "job")}


def test_no_setuid_program_is_needed(inside):
    """With every capability dropped and no new privileges the process has none."""
    status = inside("print(open('/proc/self/status').read())")

    assert re.search(r"CapEff:\s+0+\n", status)
    assert re.search(r"NoNewPrivs:\s+1\n", status)


def test_no_cache_was_left(image):
    """Neither pip's nor apt's downloads are in a layer, nor pip itself beside the job."""
    paths = "/root/.cache /home /var/cache/apt/archives /var/lib/apt/lists /opt/venv/bin/pip /src"
    code = f"for p in {paths}; do [ -e $p ] && find $p -type f; done; true"
    said = docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", code).stdout

    assert said.split() == []


def test_the_public_files_are_there_and_whole(image, inside):
    """Each of the job's own list, by its own hash."""
    code = (
        "import hashlib, pathlib; from job.data.assets import ASSETS; from job.data.builtin import IMAGE_ASSETS;"
        "print(all(hashlib.sha256((IMAGE_ASSETS / a.name).read_bytes()).hexdigest() == a.sha256 for a in ASSETS))"
    )

    assert inside(code).strip() == "True"


def test_a_compiled_step_runs(inside):
    """torch.compile finds its compiler and the headers, and a step of the model comes out as it does uncompiled."""
    code = """
import torch
from job.config import ModelConfig
from job.config_file import load_config
from job.model.gpt import GPT
from job.training.numerics import settle_numerics
settle_numerics(load_config(overrides=["run_uri=unset", "runtime.device=cpu", "runtime.compile=on"]).config, None)
torch.manual_seed(0)
model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8), 50)
tokens = torch.randint(50, (2, 8))
plain = model(tokens)
compiled = torch.compile(model)(tokens)
compiled.sum().backward()
print(torch.allclose(plain, compiled, atol=1e-5), model.wte.weight.grad is not None)
import torch._inductor.metrics as metrics
print(metrics.generated_kernel_count > 0)
"""

    assert inside(code).split() == ["True", "True", "True"]


def test_no_package_is_under_a_licence_that_binds_the_job(inside):
    """Each package says its licence, and none is of the GPL family (torch's libraries have NVIDIA's own)."""
    code = """
import json
from importlib.metadata import distributions
said = {}
for d in distributions():
    words = [d.metadata.get("License-Expression"), *(d.metadata.get_all("Classifier") or [])]
    classes = [w for w in words if w and ("License ::" in w or w == words[0])]
    said[d.metadata["Name"]] = classes or [(d.metadata.get("License") or "")[:200]]
print(json.dumps(said))
"""
    licences = json.loads(inside(code))

    assert len(licences) > 30
    assert not [name for name, said in licences.items() if not any(said)]
    assert not [name for name, said in licences.items() if COPYLEFT.search(" ".join(said).replace("LGPL", ""))]
