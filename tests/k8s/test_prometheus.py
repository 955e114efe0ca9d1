"""A real Prometheus scrapes a real run, and a real Pushgateway keeps what a short one measured."""

import re

import pytest
import yaml

from tests.integration.command import SLOW, UNHURRIED, World, get
from tests.k8s.dashboard import expressions
from tests.k8s.manifests import K8S
from tests.k8s.watching import eventually, free_port, prometheus, running

pytestmark = pytest.mark.slow

ALERTS = K8S / "components/monitoring/alerts.yaml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
ONLY_ON_A_GPU = {
    "pretrain_mfu_ratio",
    "pretrain_gpu_memory_used_bytes",
    "pretrain_gpu_memory_total_bytes",
    "pretrain_gpu_utilization_ratio",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def gateway(folder):
    """A Pushgateway that knows nothing yet: Debian's keeps what it knew in a place of its own."""
    with running("prometheus-pushgateway", folder, f"--persistence.file={folder / 'groups'}") as address:
        yield address


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def watcher(folder, gateway, port):
    """A Prometheus with the alerts, which looks at the job's port and at the Pushgateway."""
    with prometheus(folder, ALERTS, f"127.0.0.1:{port}", gateway) as found:
        yield found


@pytest.fixture(scope="module")
def live(watcher, gateway, folder, port):
    """A run that trains, and has saved twice; its endpoint's text beside it."""
    world = World.create(folder / "live")
    settings = (f"observe.metrics_port={port}", f"observe.pushgateway_url=http://{gateway}")
    endless = "training.max_steps=100000"  # it must not end before it was looked at
    with world.training(*SLOW, *settings, endless, launcher=UNHURRIED) as job:
        job.until("checkpoint saved")
        job.until("checkpoint saved")
        text = get(f"http://127.0.0.1:{port}/metrics")[1]
        eventually(lambda: watcher.query('pretrain_step{job="gpt-pretrain-live"} > 0'))
        yield text
        job.process.kill()


def test_a_run_is_scraped(live, watcher):
    """Prometheus has the step, and one phase that is on."""
    assert watcher.query('up{job="gpt-pretrain-live"}') == {"gpt-pretrain-live": 1}
    assert watcher.query('pretrain_step{job="gpt-pretrain-live"}')["gpt-pretrain-live"] >= 5
    assert len(watcher.query('pretrain_phase{job="gpt-pretrain-live"} == 1')) == 1


def test_all_that_is_watched_is_there(live):
    """Each metric that an alert or a panel names is in a live run's own answer, with a value."""
    asked = [*expressions(), *(rule["expr"] for rule in RULES)]
    names = {name for expression in asked for name in re.findall(r"\bpretrain_\w+", expression)}
    found = set(re.findall(r"^(pretrain_\w+)(?:\{.*\})? \S+$", live, re.MULTILINE))

    assert names - found == ONLY_ON_A_GPU


def test_the_endpoint_is_good_exposition(live):
    """Every metric is helped and typed."""
    found = set(re.findall(r"^(pretrain_\w+)(?:\{.*\})? \S+$", live, re.MULTILINE))
    helped = set(re.findall(r"^# HELP (\S+) \S", live, re.MULTILINE))

    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in found} - helped == set()


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_answers_the_dashboard(live, watcher, expression):
    """Each panel's expression is answered; with values, unless it shows what a healthy run on a CPU has not."""
    asked = re.sub(r"\$__rate_interval", "1m", expression).replace("$job", ".+")
    may_be_empty = any(name in expression for name in ONLY_ON_A_GPU) or re.search(r"(> 0|== 1)( |$)", expression)

    if not may_be_empty:
        assert eventually(lambda: watcher.query(asked))
    else:
        watcher.ask("query", query=asked)


def test_alerts_are_evaluated(live, watcher):
    """Prometheus evaluates every alert without an error, and none fires for a healthy run."""
    rules = eventually(
        lambda: [
            rule for group in watcher.ask("rules")["groups"] for rule in group["rules"] if rule["health"] != "unknown"
        ]
    )

    assert {rule["name"]: rule["health"] for rule in rules} == {rule["alert"]: "ok" for rule in RULES}
    assert watcher.query('ALERTS{alertstate="firing"}') == {}


def test_last_values_outlive_a_short_run(watcher, gateway, folder):
    """A run shorter than a scrape is there afterwards, with its tokens and how it ended; a failed attempt changes
    only the latter and raises the alert, and the next one takes that back."""
    world = World.create(folder / "short")
    pushed = (f"run_uri={world.folder}/short", f"observe.pushgateway_url=http://{gateway}")
    last = {"gpt-pretrain.short": 40.0 * 4 * 64}

    assert world.train(*pushed).code == 0
    assert eventually(lambda: watcher.query('pretrain_tokens_total{run="short"}')) == last
    assert watcher.query('pretrain_ended{run="short"} == 1') == {"gpt-pretrain.short.Complete": 1}

    corpus = world.corpus.rename(folder / "away")
    assert world.train(*pushed, "training.max_steps=60").code == 66
    failed = {"gpt-pretrain.short.NotFoundError": 1}
    assert eventually(lambda: watcher.query('pretrain_ended{run="short", code="66"} == 1')) == failed
    assert watcher.query('pretrain_tokens_total{run="short"}') == last
    fired = {"gpt-pretrain.short.NotFoundError.PretrainEnded": 1}
    assert eventually(lambda: watcher.query('ALERTS{alertname="PretrainEnded", alertstate="firing"}')) == fired

    corpus.rename(world.corpus)
    with world.training(*pushed, "training.max_steps=60") as job:
        job.until("run continued")
        kept = get(f"http://{gateway}/metrics")[1]
        assert re.search(r'^pretrain_ended\{code="66",.*,run="short"\} 0$', kept, re.MULTILINE)
        assert job.ending().code == 0
    assert eventually(lambda: watcher.query('pretrain_step{run="short"} == 60'))
    assert watcher.query('pretrain_ended{run="short"} == 1') == {"gpt-pretrain.short.Complete": 1}
    assert eventually(lambda: not watcher.query('ALERTS{alertname="PretrainEnded", alertstate="firing"}'))
