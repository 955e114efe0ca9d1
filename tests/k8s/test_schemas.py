"""Every overlay, with every component and every pair of them, is what the API servers and operators of today accept."""

import json
import shutil
import subprocess
from functools import cache

import pytest

from tests.k8s.manifests import COMBINATIONS, K8S, ROOT, kustomize, named, rendered

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make k8s-test installs it")
trainer = pytest.importorskip("kubeflow_trainer_api.models", reason="make k8s-test installs it")

pytestmark = pytest.mark.slow

OLDEST = (1, 31)
VERSIONS = [
    version
    for version in kubernetes_validate.utils.all_versions()
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST
]
CUSTOM = {"TrainJob", "TrainingRuntime", "PodMonitor", "PrometheusRule"}


@cache
def check(version: str, manifest: str) -> None:
    """Validate a manifest, given as JSON, once."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", sorted({overlay for overlay, _ in COMBINATIONS}))
def test_the_api_accepts_it(overlay, version):
    """Strict schemas know every field and its type, whatever components are added."""
    found = set()
    for other, components in COMBINATIONS:
        if other == overlay:
            for manifest in rendered(overlay, components):
                if manifest["kind"] not in CUSTOM:
                    found.add(manifest["kind"])
                    check(version, json.dumps(manifest))

    assert {"ConfigMap", "ServiceAccount"} <= found


def test_versions_begin_where_we_promise():
    """The oldest schema is 1.31's, and there are newer ones."""
    assert VERSIONS[0].startswith("1.31")
    assert len(VERSIONS) > 3


def test_the_example_is_valid():
    """What a user copies is accepted as it stands."""
    for manifest in kustomize(K8S / "example"):
        if manifest["kind"] not in CUSTOM:
            check(VERSIONS[-1], json.dumps(manifest))


def test_an_unknown_field_is_noticed():
    """The schemas are strict: a slip in a name is an error."""
    [job] = [manifest for manifest in rendered("gpu") if manifest["kind"] == "Job"]
    slip = json.loads(json.dumps(job).replace("podReplacementPolicy", "podReplacementPolicies"))

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(slip, VERSIONS[-1], strict=True)


KUBEFLOW = {"TrainJob": trainer.TrainerV1alpha1TrainJob, "TrainingRuntime": trainer.TrainerV1alpha1TrainingRuntime}


def unknown(asked, kept, where=""):
    """Paths that a model did not take over."""
    if isinstance(asked, dict) and isinstance(kept, dict):
        return [path for key in asked for path in unknown(asked[key], kept.get(key), f"{where}.{key}")]
    if isinstance(asked, list) and isinstance(kept, list) and len(asked) == len(kept):
        pairs = zip(asked, kept, strict=True)
        return [path for i, (one, other) in enumerate(pairs) for path in unknown(one, other, f"{where}.{i}")]
    return [] if asked == kept else [where]


@pytest.mark.parametrize("case", [case for case in COMBINATIONS if case[0] == "trainjob"], ids=named)
def test_kubeflow_accepts_it(case):
    """TrainJob and TrainingRuntime are what Kubeflow Trainer's models know, field by field."""
    for manifest in rendered(*case):
        if model := KUBEFLOW.get(manifest["kind"]):
            assert unknown(manifest, model.from_dict(manifest).to_dict()) == []


def test_kubeflow_does_not_know_a_slip():
    """The comparison names a field that the model has silently dropped."""
    slip = {"runtimeRef": {"name": "a"}, "traner": {"numNodes": 1}}
    manifest = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {}, "spec": slip}
    kept = trainer.TrainerV1alpha1TrainJob.from_dict(manifest).to_dict()

    assert unknown(manifest, kept) == [".spec.traner"]


def operator_problems(manifests):
    """What prometheus-operator's models have to say against resources of its kinds."""
    modules = ROOT / "build" / "k8s-models"
    if shutil.which("node") is None or not (modules / "node_modules").exists():
        pytest.skip("no node, or no @kubernetes-models/prometheus-operator: make k8s-test installs it")
    script = ["node", str(ROOT / "tests/k8s/custom_resources.mjs"), str(modules)]
    said = subprocess.run(script, input=json.dumps(manifests), capture_output=True, text=True, check=True).stdout
    return json.loads(said)


def monitoring():
    """PodMonitor and PrometheusRule as rendered."""
    manifests = rendered("gpu", ("monitoring",))
    return [manifest for manifest in manifests if manifest["kind"] in ("PodMonitor", "PrometheusRule")]


def test_prometheus_operator_accepts_it():
    """PodMonitor and PrometheusRule are what prometheus-operator's models know."""
    assert len(monitoring()) == 2
    assert operator_problems(monitoring()) == []


def test_prometheus_operator_refuses_a_slip():
    """A wrong duration and an unknown field are each named."""
    slipped = json.loads(
        json.dumps(monitoring()).replace('"15s"', '"15sec"').replace('"targetLabel"', '"targetLabels"')
    )
    problems = operator_problems(slipped)

    assert any("interval" in problem for problem in problems)
    assert any("targetLabels: unknown field" in problem for problem in problems)
