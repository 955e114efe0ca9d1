"""Of the manifests, what needs no tool: they say what the code says, and what is made of another file is in step."""

import os
import re
from pathlib import Path

import boto3
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import job
from job import errors
from job.config import ObserveConfig
from job.config_file import load_config
from job.infra.metrics import GPU_USE, Metrics
from tests.k8s.dashboard import expressions, panels

ROOT = Path(job.__file__).parents[1]
K8S = ROOT / "k8s"
if not K8S.exists():
    pytest.skip("k8s/ is not beside the package", allow_module_level=True)

MONITORING = K8S / "components/monitoring"
BASE = yaml.safe_load((K8S / "base/job.yaml").read_text())
POD = BASE["spec"]["template"]["spec"]
ALERTS = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
README = (K8S / "README.md").read_text()

RETRIED = {"JobError", "StorageError", "UnreachableError", "FencedError", "Interrupted"}
KUBE = re.compile(r"\bkube_\w+")


def exported():
    """Every name that the job can export, samples of histograms and of a GPU included."""
    metrics = Metrics(CollectorRegistry())
    metrics.watch_gpu(lambda: dict.fromkeys(GPU_USE, 1.0))
    help_lines = re.findall(r"^# HELP (\S+)", metrics.text().decode(), re.MULTILINE)
    samples = {
        sample.name for family in text_string_to_metric_families(metrics.text().decode()) for sample in family.samples
    }
    return set(help_lines) | samples


def test_final_ends_are_those_of_the_code():
    """The Job ends for good with the exit codes of the errors that starting again would repeat, and with usage's."""
    codes = {
        cls.exit_code
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.JobError) and name not in RETRIED
    }

    assert set(BASE["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]) == codes | {2}


@pytest.mark.parametrize("name", sorted(RETRIED - {"JobError"}))
def test_ends_that_may_pass_are_retried(name):
    """Storage that did not answer, a run taken over and a stop are worth another pod."""
    code = getattr(errors, name).exit_code

    assert code not in BASE["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]


@pytest.mark.parametrize("path", sorted(K8S.rglob("run.toml")), ids=lambda path: path.parent.name)
def test_configs_load(path):
    """Each run.toml is a config without an error, and stops before the base's pod is killed."""
    config = load_config(path=path).config

    assert config.run_uri.startswith("s3://")
    assert config.runtime.grace_seconds < POD["terminationGracePeriodSeconds"]


def test_probes_ask_the_endpoint():
    """The container's port is the one on which the job answers by default."""
    [container] = POD["containers"]

    assert container["ports"] == [{"name": "metrics", "containerPort": ObserveConfig().metrics_port}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_the_pod_is_hardened():
    """No root, no rights, no token, no writing outside of volumes."""
    [container] = POD["containers"]

    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_environment_is_one_that_boto3_reads(monkeypatch):
    """Region and address of S3 in a pod's environment are those of its clients: there are names that boto3 ignores."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for line in (K8S / "base/job.env").read_text().splitlines():
        if line and not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    [_, env] = yaml.safe_load((K8S / "overlays/local-cpu/kustomization.yaml").read_text())["configMapGenerator"]
    for literal in env["literals"]:
        monkeypatch.setenv(*literal.split("=", 1))
    client = boto3.session.Session().client("s3")

    assert (client.meta.region_name, client.meta.endpoint_url) == ("us-east-1", "http://s3:8080")


def test_no_image_floats():
    """Every image that a kustomization names has a version or a digest."""
    images = [
        image
        for part in K8S.iterdir()
        if not part.name.startswith(".")  # what another test renders comes and goes
        for path in part.rglob("kustomization.yaml")
        for image in yaml.safe_load(path.read_text()).get("images", ())
    ]

    assert images
    assert all(re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?", image.get("newTag", "")) or "digest" in image for image in images)


def test_the_base_runs_this_version():
    """The image of the base has the version of the package, in the build for GPUs."""
    [version] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    [image] = yaml.safe_load((K8S / "base/kustomization.yaml").read_text())["images"]

    assert image["newTag"] == f"{version}-cuda"


def test_a_runtime_gets_what_a_job_gets():
    """A component's patch of a TrainingRuntime is its patch of a Job, at the place where the Job is."""
    inside = "/spec/template/spec/replicatedJobs/0/template"
    for patch in K8S.glob("components/*/job.yaml"):
        expected = [
            operation
            | {
                "path": "/spec/template/spec/failurePolicy/maxRestarts"
                if operation["path"] == "/spec/backoffLimit"
                else inside + operation["path"]
            }
            for operation in yaml.safe_load(patch.read_text())
        ]

        assert yaml.safe_load(patch.with_name("runtime.yaml").read_text()) == expected, patch


def test_one_source_of_alerts():
    """The PrometheusRule holds what Prometheus' own file holds (`make manifests` writes it anew)."""
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())

    assert rule["spec"] == ALERTS


@pytest.mark.parametrize("rule", ALERTS["groups"][0]["rules"], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    """It has a severity, and its runbook is a paragraph of k8s/README.md."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["runbook"] == f"k8s/README.md#{rule['alert'].lower()}"
    assert re.search(rf"^#+ {rule['alert']}\n\n\S", README, re.MULTILINE)


@pytest.mark.parametrize("rule", ALERTS["groups"][0]["rules"], ids=lambda rule: rule["alert"])
def test_an_alert_watches_what_is_exported(rule):
    """Each metric in its expression is the job's, or one of kube-state-metrics."""
    names = set(re.findall(r"\bpretrain_\w+", rule["expr"]))

    assert names <= exported()
    assert names or KUBE.search(rule["expr"])


@pytest.mark.parametrize("expression", expressions())
def test_a_panel_shows_what_is_exported(expression):
    """Each metric that a panel asks for is one of the job's."""
    names = set(re.findall(r"\bpretrain_\w+", expression))

    assert names
    assert names <= exported()


@pytest.mark.parametrize(
    "metric",
    [
        "pretrain_loss_nats",
        "pretrain_perplexity",
        "pretrain_tokens_per_second",
        "pretrain_mfu_ratio",
        "pretrain_gpu_memory_used_bytes",
        "pretrain_checkpoint_duration_seconds",
        "pretrain_storage_errors_total",
        "pretrain_goodput_ratio",
        "pretrain_phase",
    ],
)
def test_the_dashboard_shows_what_matters(metric):
    """Learning, speed, checkpoints, storage and phases each have a panel."""
    assert any(metric in expression for expression in expressions())


def test_panels_lie_side_by_side():
    """No two panels overlap, none is wider than the page, each has a title and a number of its own."""
    places = [panel["gridPos"] | {"id": panel["id"]} for panel in panels()]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({place["id"] for place in places}) == len(places)
    assert all(panel["title"] for panel in panels())
