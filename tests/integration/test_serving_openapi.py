"""The published description: true enough for a tool that makes requests of it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.serving_support import NAME, serving

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def running():
    with serving(max_queue=100) as found:
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_what_a_tool_makes_of_it(running, mode):
    """Requests made of the description, right and wrong ones, get no 5xx, and no answer that it does not describe."""
    described = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    cases = st.sampled_from(operations).flatmap(lambda operation: operation.as_strategy(generation_mode=mode))
    statuses = set()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def send(case):
        answer = case.call_and_validate(checks=CHECKS)
        if case.operation.label == "POST /v1/completions":
            statuses.add(answer.status_code)

    send()

    assert len(operations) == 7
    assert {200, 400} <= statuses if mode is GenerationMode.POSITIVE else 400 in statuses


def test_it_says_what_is_checked(running):
    """Fields and limits of the description are those that requests are checked with."""
    found = running.get("/openapi.json").json()
    fields = found["components"]["schemas"]["CompletionRequest"]
    whole = dict.fromkeys(fields["properties"]) | {"prompt": "a", "model": NAME}

    assert fields["required"] == ["prompt"]
    assert fields["additionalProperties"] is False
    assert {"maximum": 8, "minimum": 1, "type": "integer"} in fields["properties"]["n"]["anyOf"]
    assert running.post(whole).status_code == 200


def test_it_asks_for_the_key():
    """With a key the description says where it is wanted."""
    with serving(key="some-key") as found:
        paths = found.get("/openapi.json").json()["paths"]

        assert paths["/v1/completions"]["post"]["security"] == [{"key": []}]
        assert "security" not in paths["/healthz"]["get"]
