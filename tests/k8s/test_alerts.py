"""The alerts: valid, each shown to fire and to stay silent, each with something to do about it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.dashboard import expressions
from tests.k8s.manifests import K8S, ROOT

pytestmark = pytest.mark.slow

ALERTS = K8S / "components/monitoring/alerts.yaml"
CASES = ROOT / "tests/k8s/alerts_test.yaml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
NAMES = [rule["alert"] for rule in RULES]


def promtool(*arguments):
    """Exit code and output of promtool; the test is skipped where there is none."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_rules_are_valid():
    """promtool reads every expression, duration and template."""
    code, said = promtool("check", "rules", ALERTS)

    assert code == 0, said
    assert f"{len(NAMES)} rules found" in said


def test_alerts_do_as_they_are_meant():
    """Each fires on the history that it is for, and not on those that only look like it."""
    code, said = promtool("test", "rules", CASES)

    assert code == 0, said


def outcome_with(tmp_path, name, expression):
    """How the cases end when one alert's expression is another."""
    rules = [rule | ({"expr": expression} if rule["alert"] == name else {}) for rule in RULES]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    cases = yaml.safe_load(CASES.read_text()) | {"rule_files": ["alerts.yaml"]}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    return promtool("test", "rules", tmp_path / "cases.yaml")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("expression", ["vector(1) == 0", "vector(1)"], ids=["never", "always"])
def test_the_cases_notice_a_wrong_alert(tmp_path, name, expression):
    """An alert that never fires, or always does, turns the cases red."""
    code, said = outcome_with(tmp_path, name, expression)

    assert code != 0
    assert f"alertname: {name}" in said.replace("alertname:", "alertname: ").replace("  ", " ")


MARGINS = [
    ("PretrainStalled", "5m", "50m"),
    ("PretrainCheckpointOverdue", "2 \\*", "4 *"),
    ("PretrainCheckpointOverdue", " or pretrain_training_started_timestamp_seconds", ""),
    ("PretrainStorageErrors", "> 3", "> 1"),
    ("PretrainCheckpointRejected", "unless.*", ""),
    ("PretrainLowGoodput", "< 0.7", "< 0.3"),
    ("PretrainLowGoodput", "unless.*", ""),
    ("PretrainRestartLoop", ">= 3", ">= 4"),
    ("PretrainEnded", "\\|Interrupted", ""),
    ("PretrainJobFailed", 'job_name=~"gpt-pretrain.*", ', ""),
]


@pytest.mark.parametrize(("name", "part", "other"), MARGINS)
def test_the_cases_hold_the_thresholds(tmp_path, name, part, other):
    """Moving a threshold, or leaving out a condition, turns them red too."""
    [expression] = [rule["expr"] for rule in RULES if rule["alert"] == name]
    changed = re.sub(part, other, expression)

    assert changed != expression
    assert outcome_with(tmp_path, name, changed)[0] != 0


def test_expressions_of_the_dashboard_are_valid(tmp_path):
    """Every panel's expression is one that Prometheus reads, with Grafana's variables filled in."""
    found = [
        re.sub(r"\$__rate_interval|\$__interval", "5m", expression).replace("$job", ".+")
        for expression in expressions()
    ]
    assert not [expression for expression in found if "$" in expression]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(found)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    code, said = promtool("check", "rules", tmp_path / "panels.yaml")

    assert code == 0, said
    assert len(found) > 25


def test_a_broken_expression_is_noticed(tmp_path):
    """promtool refuses what Prometheus could not read."""
    rule = {"record": "panel:0", "expr": "rate(pretrain_tokens_total)"}
    Path(tmp_path / "broken.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))

    assert promtool("check", "rules", tmp_path / "broken.yaml")[0] != 0
