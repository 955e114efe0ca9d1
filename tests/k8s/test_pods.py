"""What schemas cannot see: whether the pods are hardened, fit together, and mean what the job means."""

import re
import subprocess
import sys

import click
import pytest

from job import errors
from job.cli import main
from job.config import ObserveConfig
from tests.k8s.manifests import (
    ALONE_AND_ALL,
    OVERLAYS,
    config_of,
    job_pod,
    local_environ,
    named,
    one,
    pods,
    quantity,
    render,
    rendered,
)

pytestmark = pytest.mark.slow

RETRIED = {errors.JobError, errors.StorageError, errors.UnreachableError, errors.FencedError, errors.Interrupted}
FINAL = {2} | {
    cls.exit_code
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.JobError) and cls not in RETRIED
}
TRAINED = ("gpu", "multi-gpu", "multi-node", "trainjob")  # on a corpus of the user's
FROM_ELSEWHERE = {"gpt-pretrain-s3", "gpt-cache"}  # a Secret and a claim that the user makes


@pytest.fixture(params=ALONE_AND_ALL, ids=named)
def manifests(request):
    """An overlay alone, and with all components."""
    return rendered(*request.param)


@pytest.fixture
def job(manifests):
    """The pod that runs gpt-job."""
    return job_pod(manifests)


def test_ends_that_repeat_are_final(job):
    """The exit codes that end the Job are those of errors.py that starting again would repeat."""
    rule = job.job["podFailurePolicy"]["rules"][0]

    assert rule["action"] == "FailJob"
    assert set(rule["onExitCodes"]["values"]) == FINAL
    assert rule["onExitCodes"]["operator"] == "In"


def test_a_final_code_counts_from_any_container(job):
    """No container is named: what `check` finds is as final as what `train` finds."""
    assert "containerName" not in job.job["podFailurePolicy"]["rules"][0]["onExitCodes"]


def test_a_drained_node_is_not_counted(job):
    """A disruption that Kubernetes itself announces is ignored, after the final codes were looked for."""
    rule = job.job["podFailurePolicy"]["rules"][1]

    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_pods_follow_each_other(job):
    """A pod is never restarted in place, and the next one waits until it has ended: one writer."""
    assert job.spec["restartPolicy"] == "Never"
    assert job.job["podReplacementPolicy"] == "Failed"


def test_the_job_stops_before_it_is_killed(job, manifests, tmp_path):
    """runtime.grace_seconds, as the pod resolves it, lies below what kubelet waits."""
    grace = config_of(manifests, tmp_path).runtime.grace_seconds

    assert 10 <= grace < job.spec["terminationGracePeriodSeconds"] <= 1.3 * grace


def test_pods_are_restricted(manifests):
    """Each container of each pod is held to more than the restricted Pod security standard."""
    for pod in pods(manifests):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_service_account_has_no_token(manifests):
    """Neither pods nor their account are given one; web identity projects its own."""
    assert one(manifests, "ServiceAccount")["automountServiceAccountToken"] is False


def test_volumes_are_bounded(manifests):
    """No path of the host; every scratch volume has a size, and the disk and memory that all may fill are allowed."""
    for pod in pods(manifests):
        volumes = pod.spec["volumes"]
        assert not [volume for volume in volumes if "hostPath" in volume]
        scratch = [volume["emptyDir"] for volume in volumes if "emptyDir" in volume]
        limits = pod.main["resources"]["limits"]
        disk = sum(quantity(volume["sizeLimit"]) for volume in scratch if "medium" not in volume)
        memory = sum(quantity(volume["sizeLimit"]) for volume in scratch if volume.get("medium") == "Memory")
        assert disk < quantity(limits["ephemeral-storage"])
        assert memory < quantity(limits["memory"]) / 2


def test_loader_workers_have_shared_memory(job):
    """/dev/shm is a sized volume in memory, and what the image declares writable is a volume."""
    volumes = {volume["name"]: volume for volume in job.spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in job.main["volumeMounts"]}

    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert {"/tmp", "/cache"} <= mounts.keys()


def test_resources_are_said(manifests):
    """Requests equal limits in memory, disk and GPUs: nothing is promised twice."""
    for pod in pods(manifests):
        for container in pod.containers:
            resources = container["resources"]
            assert quantity(resources["requests"]["cpu"]) <= quantity(resources["limits"]["cpu"])
            for name in resources["limits"].keys() - {"cpu"}:
                assert quantity(resources["limits"][name]) > 0
                assert resources["requests"][name] == resources["limits"][name]
            assert {"memory", "ephemeral-storage", "cpu"} <= resources["limits"].keys()


def test_images_are_pinned(manifests):
    """Every image has a version or a digest that is not `latest`."""
    for pod in pods(manifests):
        for container in pod.containers:
            assert re.search(r"(:\d[\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]), container["image"]


def test_all_that_is_named_is_there(manifests):
    """ConfigMaps, claims, accounts and mounted volumes exist under the names by which they are meant."""
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        meant = {("ServiceAccount", pod.spec["serviceAccountName"])} if pod.job else set()
        for volume in volumes.values():
            meant |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            meant |= {("PersistentVolumeClaim", claim)} if claim else set()
        for container in pod.containers:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            for source in container.get("envFrom", ()):
                kind = "ConfigMap" if "configMapRef" in source else "Secret"
                meant.add((kind, source.get("configMapRef", source.get("secretRef"))["name"]))

        assert {(kind, name) for kind, name in meant - names if name not in FROM_ELSEWHERE} == set()


def test_selectors_find_the_pods(manifests):
    """Each selector's labels are those of a pod that is here."""
    labels = [pod.labels for pod in pods(manifests)]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "NetworkPolicy":
            wanted = spec["podSelector"]["matchLabels"]
        elif manifest["kind"] == "Service":
            wanted = spec["selector"]
        elif manifest["kind"] in ("PodMonitor", "Deployment"):
            wanted = spec["selector"]["matchLabels"]
        else:
            continue
        assert any(wanted.items() <= found.items() for found in labels), manifest["kind"]


def test_ports_are_those_of_the_job(job):
    """The metrics port, and the probes on it where there are any, ask what the endpoint answers."""
    ports = {port["name"]: port["containerPort"] for port in job.main.get("ports", ())}
    probes = {name: probe["httpGet"] for name, probe in job.main.items() if name.endswith("Probe")}

    assert ports.get("metrics", ObserveConfig().metrics_port) == ObserveConfig().metrics_port
    if probes:
        assert {name: (get["path"], get["port"]) for name, get in probes.items()} == {
            "startupProbe": ("/healthz", "metrics"),
            "livenessProbe": ("/healthz", "metrics"),
            "readinessProbe": ("/readyz", "metrics"),
        }


def test_the_end_is_told(job):
    """The termination message lies where the job writes it."""
    assert job.main["terminationMessagePath"] == "/dev/termination-log"
    assert job.main["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_config_loads(overlay, tmp_path):
    """`gpt-job config show` resolves what the pod is given, without an error."""
    show = [sys.executable, "-m", "job", "config", "show"]
    shown = subprocess.run(
        show, env=local_environ(rendered(overlay), tmp_path), capture_output=True, text=True, check=False
    )

    assert shown.returncode == 0, shown.stderr
    assert 'run_uri = "s3://' in shown.stdout


def understood(arguments):
    """The parameters that the command line makes of a container's arguments; click raises where it knows them not."""
    command = main.commands[arguments[0]]
    with command.make_context(arguments[0], arguments[1:]) as context:
        return context.params


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_commands_exist(overlay):
    """What each container runs, the preflight and what Trainer passes on included, is a command with its flags."""
    manifests = rendered(overlay, ("check",))
    words = [container["args"] for container in job_pod(manifests).containers]
    words += [kind["spec"]["trainer"]["args"] for kind in manifests if kind["kind"] == "TrainJob"]

    assert next(command for command, *_ in words) == "check"
    assert all(understood(arguments) for arguments in words)


def test_a_command_that_is_none_is_noticed():
    """A flag of another command, and a command that there is not, are errors."""
    with pytest.raises(click.UsageError):
        understood(["prepare", "--processes", "gpu"])
    with pytest.raises(KeyError):
        understood(["pretrain"])


@pytest.mark.parametrize(
    ("overlay", "processes"), [("gpu", None), ("multi-gpu", "gpu"), ("multi-node", "gpu"), ("trainjob", "gpu")]
)
def test_every_gpu_of_a_node_is_used(overlay, processes):
    """With several GPUs in a pod there is a process for each of them."""
    manifests = rendered(overlay)
    trainer = one(manifests, "TrainJob")["spec"]["trainer"] if overlay == "trainjob" else job_pod(manifests).main
    resources = trainer.get("resourcesPerNode") or trainer["resources"]

    assert understood(trainer["args"])["processes"] == processes
    assert (int(resources["limits"]["nvidia.com/gpu"]) > 1) == (processes == "gpu")


def test_prepared_tokens_are_those_that_are_trained_on(tmp_path):
    """The Job that prepares resolves the data that the training Jobs resolve, and leaves it where they look."""
    prepared = config_of(rendered("prepare"), tmp_path).data

    assert prepared.cache_uri == "s3://my-bucket/cache"
    assert {overlay: config_of(rendered(overlay), tmp_path).data for overlay in TRAINED} == dict.fromkeys(
        TRAINED, prepared
    )


def test_nodes_of_a_run_find_each_other():
    """Their number stands everywhere, and pod 0 has a name that is there before it is ready."""
    manifests = rendered("multi-node")
    pod, service = job_pod(manifests), one(manifests, "Service")
    env = {entry["name"]: entry for entry in pod.main["env"]}

    assert pod.job["completionMode"] == "Indexed"
    assert int(env["PET_NNODES"]["value"]) == pod.job["completions"] == pod.job["parallelism"]
    assert env["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"].endswith("job-completion-index']")
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert pod.spec["subdomain"] == service["metadata"]["name"] == one(manifests, "Job")["metadata"]["name"]
    assert env["PET_MASTER_ADDR"]["value"] == "$(JOB_NAME)-0.$(JOB_NAME)"
    assert list(env).index("JOB_NAME") < list(env).index("PET_MASTER_ADDR")
    assert {int(env["PET_MASTER_PORT"]["value"])} == {port["port"] for port in service["spec"]["ports"]}


def test_a_renamed_run_still_finds_itself():
    """A suffix makes a second run of it, whose Service, subdomain and Job have one name."""
    manifests = render("multi-node", more="nameSuffix: -b\n")
    names = {one(manifests, "Service")["metadata"]["name"], one(manifests, "Job")["metadata"]["name"]}

    assert names == {"gpt-pretrain-b"}
    assert job_pod(manifests).spec["subdomain"] == "gpt-pretrain-b"


def test_kubeflow_knows_the_container():
    """Trainer's arguments and variables go to a container that is called node, in the step that is called trainer."""
    manifests = rendered("trainjob")
    [replicated] = one(manifests, "TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]

    assert job_pod(manifests).main["name"] == "node"
    assert replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert one(manifests, "TrainJob")["spec"]["runtimeRef"]["name"] == "gpt-pretrain"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_check_sees_what_the_job_sees(overlay):
    """The preflight has the job's image, environment, devices, volumes and rights, those of components included."""
    pod = job_pod(rendered(overlay, ("irsa", "spot", "check")))
    [check] = pod.spec["initContainers"]

    assert check["args"] == ["check"]
    for name in ("image", "env", "envFrom", "resources", "securityContext", "volumeMounts"):
        assert check[name] == pod.main[name], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kueue_starts_the_job(overlay):
    """The Job, or TrainJob, names a queue and waits until it is admitted."""
    manifests = rendered(overlay, ("kueue",))
    queued = one(manifests, "TrainJob" if overlay == "trainjob" else "Job")

    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert queued["spec"]["suspend"] is True


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_spot_nodes_are_borne(overlay, tmp_path):
    """Many restarts are allowed, checkpoints come by the clock, and what an overlay tolerates stays."""
    manifests, before = rendered(overlay, ("spot",)), job_pod(rendered(overlay))
    pod = job_pod(manifests)
    runtime = [manifest for manifest in manifests if manifest["kind"] == "TrainingRuntime"]
    restarts = runtime[0]["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] if runtime else None

    assert (restarts or pod.job["backoffLimit"]) >= 1000
    assert config_of(manifests, tmp_path).checkpoint.every_seconds == 300
    assert [one for one in before.spec["tolerations"] if one not in pod.spec["tolerations"]] == []
    assert len(pod.spec["tolerations"]) > len(before.spec["tolerations"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_web_identity_needs_no_key(overlay):
    """A token of the pod, renewed and for S3's STS alone, lies where boto3 is told to look."""
    manifests = rendered(overlay, ("irsa",))
    pod = job_pod(manifests)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod.main["volumeMounts"]}
    [(name, token)] = [
        (volume["name"], volume["projected"]["sources"][0]["serviceAccountToken"])
        for volume in pod.spec["volumes"]
        if "projected" in volume
    ]
    [role] = [manifest["data"] for manifest in manifests if "AWS_ROLE_ARN" in manifest.get("data", {})]

    assert role["AWS_WEB_IDENTITY_TOKEN_FILE"] == f"{mounts[name]}/{token['path']}"
    assert token["audience"] == "sts.amazonaws.com"
    assert token["expirationSeconds"] <= 3600


def test_the_node_gives_no_rights_away():
    """With the network policy no address that hands out credentials of the node can be reached, of either family."""
    policy = one(rendered("gpu", ("network-policy",)), "NetworkPolicy")["spec"]
    wide = [peer["ipBlock"] for rule in policy["egress"] for peer in rule.get("to", ()) if "ipBlock" in peer]
    excluded = {cidr for block in wide for cidr in block.get("except", ())}

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert {"169.254.0.0/16", "fd00:ec2::254/128", "fd20:ce::254/128"} <= excluded
    assert all(block.get("except") for block in wide if block["cidr"].endswith("/0"))
    assert all((rule.get("to") and rule.get("ports")) or "podSelector" in rule["to"][0] for rule in policy["egress"])
