"""What processes of one run compute with when their machines differ."""

import re

import pytest
import structlog
import torch

from job.errors import ConfigError
from job.infra.device import Numerics
from job.training.agreement import in_common

OWN = Numerics(device="cpu", precision="bf16", compile=True, deterministic=False, threads=2, world_size=2)
ALIKE = {"device": "cpu", "torch": torch.__version__, "precision": "bf16", "compile": True}


def test_those_that_are_alike_keep_what_they_have():
    """Nothing is changed, and nothing said."""
    with structlog.testing.capture_logs() as logs:
        assert in_common(OWN, [ALIKE, ALIKE]) == OWN

    assert logs == []


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        ({"precision": "fp32"}, ("fp32", True)),
        ({"precision": "fp16"}, ("fp32", True)),
        ({"compile": False}, ("bf16", False)),
    ],
)
def test_what_one_has_not_none_takes(other, taken):
    """fp32 is what all can multiply in, and eager what all can run; a warning says so."""
    with structlog.testing.capture_logs() as logs:
        found = in_common(OWN, [ALIKE, ALIKE | other])

    assert (found.precision, found.compile) == taken
    assert [line["log_level"] for line in logs] == ["warning"]


@pytest.mark.parametrize(("name", "other"), [("device", "cuda"), ("torch", "2.10.0")])
def test_one_device_and_one_torch(name, other):
    """Numbers of two kinds are never averaged: each rank's is named."""
    with pytest.raises(ConfigError, match=re.escape(f"need one {name}: {ALIKE[name]} on rank 0, {other} on rank 1")):
        in_common(OWN, [ALIKE, ALIKE | {name: other}])
