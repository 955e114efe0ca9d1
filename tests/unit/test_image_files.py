"""What the image is made of, read without an engine: bases, locks, users, and what must not get in."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from job.config import RuntimeConfig

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["docker/Dockerfile", "docker/s3/Dockerfile"]
JOB_LOCKS = ["docker/requirements-cpu.lock", "docker/requirements-cuda.lock"]
LOCKS = [*JOB_LOCKS, "docker/s3/requirements.lock"]
DIGEST = r"@sha256:[0-9a-f]{64}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE_PLATFORM = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
NOT_IN_AN_IMAGE = {"dev", "bench", "parity", "k8s"}
EXTRAS = re.search(r"(?m)^IMAGE_EXTRAS := (.*)", (ROOT / "Makefile").read_text())[1].split()


def instructions(path):
    """(stage, instruction, arguments), continued lines joined, heredocs left out."""
    text = re.sub(r"<<EOT\n.*?\nEOT\n", "\n", (ROOT / path).read_text(), flags=re.DOTALL)
    stage = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.split()[-1]
        if name and not name.startswith("#"):
            yield stage, name, " ".join(rest.split())


def last(path, name, stage="run"):
    """The arguments of the last such instruction of a stage, which is the one that counts."""
    return [rest for where, found, rest in instructions(path) if (where, found) == (stage, name)][-1]


def locked(path):
    """Name -> (version, hashes) of what a lock has for an image."""
    found = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", (ROOT / path).read_text()).strip()):
        requirement = Requirement(entry.partition(" \\")[0])
        if requirement.marker and not requirement.marker.evaluate(IMAGE_PLATFORM):
            continue
        versions = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        found[canonicalize_name(requirement.name)] = (versions[0], re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def pinned(path):
    """Name -> version of a constraints file."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("path", DOCKERFILES)
def test_no_base_floats(path):
    """Every stage builds on another stage, on nothing, or on the one base that is pinned by its digest."""
    stages = {stage for stage, _, _ in instructions(path)}
    bases = [rest.split()[0] for _, name, rest in instructions(path) if name == "FROM"]
    default = last(path, "ARG", stage="")

    assert re.fullmatch(rf"BASE=[\w./:-]+{DIGEST}", default)
    assert {base for base in bases if base not in stages} <= {"${BASE}", "scratch"}


def test_public_images_of_compose_are_pinned():
    """What compose pulls from others is named by version and digest."""
    images = re.findall(r"image: \$\{\w+:-(.*)\}", (ROOT / "docker/compose.yaml").read_text())

    assert len(images) == 3
    assert all(re.fullmatch(rf"[\w/]+:v?[\d.]+{DIGEST}", image) for image in images)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_the_image_runs_as_a_numbered_user(path):
    """A user by number, so that Kubernetes can see that it is not root."""
    assert re.fullmatch(r"1\d{4}:1\d{4}", last(path, "USER"))


@pytest.mark.parametrize("path", DOCKERFILES)
@pytest.mark.parametrize("name", ["ENTRYPOINT", "HEALTHCHECK"])
def test_no_shell_stands_between_engine_and_program(path, name):
    """Both are lists of words: a shell as first process would keep SIGTERM to itself."""
    said = last(path, name)

    assert json.loads(said[said.index("[") :])


def test_sigterm_is_what_stops_it():
    """The signal that the job saves its state on, said outright and not left to the engine."""
    assert last("docker/Dockerfile", "STOPSIGNAL") == "SIGTERM"


def test_the_health_check_is_the_program_itself():
    """Nothing has to be in the image for it that the job does not need."""
    assert last("docker/Dockerfile", "HEALTHCHECK").endswith('CMD ["python", "-m", "job.infra.healthcheck"]')


def test_no_volume_makes_a_run_look_kept():
    """A VOLUME would give each container an anonymous one, lost with it, that looks like a mounted folder."""
    assert not [name for _, name, _ in instructions("docker/Dockerfile") if name == "VOLUME"]


def test_gpus_are_asked_for():
    """What NVIDIA's runtime looks at: all devices, for computing and for nvidia-smi."""
    environment = " ".join(rest for _, name, rest in instructions("docker/Dockerfile") if name == "ENV")

    assert "NVIDIA_VISIBLE_DEVICES=all" in environment
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in environment


@pytest.mark.parametrize("path", DOCKERFILES)
def test_packages_come_by_hash_only(path):
    """Whatever pip fetches over the network is named in a lock and has its hash; nothing is fetched by URL."""
    text = (ROOT / path).read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "pip install" in line and not line.startswith("#")]

    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert not re.search(r"^ADD |curl |wget ", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", LOCKS)
def test_every_locked_package_has_a_version_and_hashes(path):
    """One exact version and at least one SHA-256 each."""
    packages = locked(path)

    assert len(packages) > 10
    assert not [name for name, (version, hashes) in packages.items() if not version or not hashes]


@pytest.mark.parametrize("path", JOB_LOCKS)
def test_the_locks_have_what_the_job_asks_for(path):
    """Every dependency of the project, and of the extras that the image carries, in a version that it takes."""
    wanted = [*PROJECT["dependencies"], *(name for extra in EXTRAS for name in PROJECT["optional-dependencies"][extra])]
    packages = locked(path)
    missing = [
        wish
        for wish in map(Requirement, wanted)
        if (found := packages.get(canonicalize_name(wish.name))) is None or found[0] not in wish.specifier
    ]

    assert not missing, "make locks"


def test_every_setting_works_in_the_image():
    """No extra that a user's setting can ask for is left out: nothing can be installed into a read-only image."""
    everything = {*EXTRAS, "gpu"}

    assert everything == PROJECT["optional-dependencies"].keys() - NOT_IN_AN_IMAGE
    assert "nvidia-ml-py" in locked(JOB_LOCKS[1])


@pytest.mark.parametrize("path", JOB_LOCKS)
def test_the_locks_are_complete(path):
    """Whatever a locked package needs here is locked too, as far as those packages are installed beside these tests."""
    packages, missing = locked(path), []
    for name in packages:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wishes = [wish for wish in map(Requirement, needs) if not wish.marker or wish.marker.evaluate({"extra": ""})]
        missing += [f"{name} needs {wish}" for wish in wishes if canonicalize_name(wish.name) not in packages]

    assert not missing, "make locks"


@pytest.mark.parametrize("path", JOB_LOCKS)
def test_the_image_has_the_versions_that_are_tested(path):
    """The locks have what constraints.txt has; only the libraries of CUDA are beyond it."""
    tested = pinned("constraints.txt")
    packages = {name: version.removesuffix("+cpu") for name, (version, _) in locked(path).items()}
    beyond = {name for name in packages if name not in tested}

    assert {name: packages[name] for name in packages.keys() & tested} == {
        name: tested[name] for name in packages.keys() & tested
    }, "make locks"
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in beyond)


def test_the_server_for_tests_is_the_one_of_compose():
    """The image of the S3 server has the packages that the tests' own server has."""
    assert {name: version for name, (version, _) in locked("docker/s3/requirements.lock").items()} == pinned(
        "constraints-s3.txt"
    )


def test_the_cpu_build_has_no_cuda():
    """Small means small: torch's CPU build, and none of the libraries for GPUs."""
    cpu, cuda = (set(locked(path)) for path in JOB_LOCKS)

    assert locked(JOB_LOCKS[0])["torch"][0].endswith("+cpu")
    assert not [name for name in cpu if name.startswith("nvidia-")]
    assert {"triton", "nvidia-cublas", "nvidia-nccl-cu13"} <= cuda


@pytest.mark.parametrize("path", [path.name for path in ROOT.glob("constraints*.txt")])
def test_constraints_are_exact(path):
    """Each line is one version."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]

    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)]


def test_torch_has_the_last_mend_of_weights_only_loading():
    """The project takes no torch older than 2.10."""
    wish = next(wish for wish in map(Requirement, PROJECT["dependencies"]) if wish.name == "torch")

    assert "2.10.0" in wish.specifier
    assert "2.9.1" not in wish.specifier


def test_the_build_context_is_a_list_of_what_goes_in():
    """Everything is left out but what is named, so that neither runs nor keys nor history reach a layer."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    named = {line[1:] for line in lines if line.startswith("!")}

    assert lines[0] == "*"
    assert named == {
        "job",
        "docker/*.lock",
        "docker/s3",
        "tests/swift_filter.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }


def test_compose_waits_longer_than_the_job_takes_to_stop():
    """The engine kills after the job's own grace is over, not before."""
    seconds = re.search(r"stop_grace_period: (\d+)s", (ROOT / "docker/compose.yaml").read_text())

    assert int(seconds[1]) > RuntimeConfig().grace_seconds
