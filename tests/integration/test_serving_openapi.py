"""The published description: true enough for a tool that makes requests of it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.serving_support import NAME, serving

EXAMPLES = 60


@pytest.fixture(scope="module")
def running():
    with serving(max_queue=100) as found:
        yield found


@pytest.fixture(scope="module")
def described(running):
    """The description, as the server publishes it."""
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_a_tool_makes_of_it(case):
    """Requests made of the description, right and wrong ones, get no 5xx, and no answer that it does not describe."""
    case.call_and_validate(checks=[not_a_server_error, status_code_conformance, response_schema_conformance])


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
