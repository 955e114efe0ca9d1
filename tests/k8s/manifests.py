"""The manifests as kubectl renders them: overlays alone and with components, and the pods in them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.config import Config
from job.config_file import load_config

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = ("kueue", "monitoring", "irsa", "spot", "network-policy", "cache", "check")  # check copies the others'
ALONE_AND_ALL = [(overlay, components) for overlay in OVERLAYS for components in ((), COMPONENTS)]
COMBINATIONS = [
    (overlay, components)
    for overlay in OVERLAYS
    for count in (0, 1, 2, len(COMPONENTS))
    for components in combinations(COMPONENTS, count)
]
KUSTOMIZATION = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"


def named(case: object) -> str:
    """A case as the id of a test."""
    if isinstance(case, str):
        return case
    overlay, components = case  # type: ignore[misc]
    return f"{overlay}+{'all' if components == COMPONENTS else '+'.join(components) or 'nothing'}"


def render(overlay: str, components: tuple[str, ...] = (), more: str = "") -> tuple[Manifest, ...]:
    """What `kubectl kustomize` makes of an overlay with components, and with more lines of a kustomization."""
    if not components and not more:
        return kustomize(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory(dir=K8S, prefix=".test-") as folder:
        lines = [f"resources: [../overlays/{overlay}]"]
        paths = [_component(overlay, name) for name in components]
        lines += [f"components: [{', '.join(paths)}]"] if paths else []
        (Path(folder) / "kustomization.yaml").write_text(KUSTOMIZATION + "\n".join(lines) + "\n" + more)
        return kustomize(Path(folder))


def _component(overlay: str, name: str) -> str:
    """Where a component is, seen from a folder beside overlays; the check of a TrainingRuntime is one of its own."""
    return f"../components/{name}/trainjob" if (overlay, name) == ("trainjob", "check") else f"../components/{name}"


def kustomize(folder: Path) -> tuple[Manifest, ...]:
    """The manifests of a kustomization; the test is skipped where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, f"{folder}: {rendered.stderr}"
    return tuple(yaml.safe_load_all(rendered.stdout))


rendered = cache(render)


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest makes.

    Args:
        of: The kind of the manifest.
        job: Its batch/v1 Job's spec; empty for a Deployment.
        labels: The pod's own.
    """

    of: str
    job: Mapping[str, Any]
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Manifest]:
        """All of them, those that run before the others included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def main(self) -> Manifest:
        """The container that stays."""
        [container] = self.spec["containers"]
        found: Manifest = container
        return found


def pods(manifests: tuple[Manifest, ...]) -> Iterator[Pod]:
    """The pods of Jobs, Deployments and TrainingRuntimes."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in ("Job", "Deployment"):
            job, template = (spec if manifest["kind"] == "Job" else {}), spec["template"]
        elif manifest["kind"] == "TrainingRuntime":
            [replicated] = spec["template"]["spec"]["replicatedJobs"]
            job, template = replicated["template"]["spec"], replicated["template"]["spec"]["template"]
        else:
            continue
        yield Pod(manifest["kind"], job, template["metadata"]["labels"], template["spec"])


def job_pod(manifests: tuple[Manifest, ...]) -> Pod:
    """The one pod that runs gpt-job."""
    [found] = [pod for pod in pods(manifests) if pod.job]
    return found


def one(manifests: tuple[Manifest, ...], kind: str) -> Manifest:
    """The one manifest of a kind."""
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def environ(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """The environment of gpt-job in its pod, as far as it does not come from a Secret or from the pod itself."""
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap"}
    main = job_pod(manifests).main
    found: dict[str, str] = {}
    for source in main.get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
    return found | {entry["name"]: entry["value"] for entry in main["env"] if "value" in entry}


def files(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """Files that ConfigMaps put into the pod, by path."""
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap"}
    pod = job_pod(manifests)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod.main["volumeMounts"]}
    return {
        f"{mounts[volume['name']]}/{name}": text
        for volume in pod.spec["volumes"]
        if "configMap" in volume
        for name, text in maps[volume["configMap"]["name"]].items()
    }


def config_of(manifests: tuple[Manifest, ...], folder: Path) -> Config:
    """The config that the pod resolves, from its file and its environment."""
    return load_config(environ=local_environ(manifests, folder)).config


def local_environ(manifests: tuple[Manifest, ...], folder: Path) -> dict[str, str]:
    """The pod's environment, with its config file in `folder`."""
    variables = environ(manifests)
    path = folder / "run.toml"
    path.write_text(files(manifests)[variables["GPT_JOB_CONFIG"]])
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GPT_JOB_", "AWS_"))}
    return {**own, **variables, "GPT_JOB_CONFIG": str(path)}


UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: object) -> float:
    """The value of a resource quantity."""
    number = str(text).rstrip("mkMGTi")
    unit = str(text)[len(number) :]
    assert unit in UNITS, f"{text} is no quantity"
    return float(number) * UNITS[unit]
