"""R-13: whatever storage answers to the first reads of an existing run, it never starts from step 0."""

import itertools
import re

import pytest

from tests.chaos import evidence
from tests.chaos.harness import Plan
from tests.chaos.weather import Site, note_faults
from tests.fault_plans import FORBIDDEN, RESET_BEFORE, Since, asks, refuse, stall, with_act
from tests.fault_proxy import FaultProxy
from tests.s3_server import make_certificate

SETTINGS = ("training.max_steps=20", "training.eval_every=10", "checkpoint.every=5")
READS = {
    "listing": asks("LIST", key="log/"),
    "record": asks("GET", key="log/"),
    "size": asks("HEAD", key="data/"),
    "object": asks("GET", key="data/"),
}
# What happens -> exit code (DESIGN, section 4), and what the last line says about it; to a HEAD S3 gives no reason.
ERRORS = {
    "401": (77, "Unauthorized|401"),
    "403": (77, "AccessDenied|403"),
    "signature": (77, "SignatureDoesNotMatch|403"),
    "404": (66, "NoSuchBucket"),
    "500": (69, "InternalError|500"),
    "503": (69, "SlowDown|503"),
    "names": (69, "Could not connect to the endpoint URL"),
    "refused": (69, "Could not connect to the endpoint URL"),
    "tls": (69, "CERTIFICATE_VERIFY_FAILED"),
    "timeout": (69, "[Tt]ime(d )?out|stood still"),
}
ANSWERS = {
    "401": refuse(401, "Unauthorized"),
    "403": FORBIDDEN,
    "signature": refuse(403, "SignatureDoesNotMatch"),
    "404": refuse(404, "NoSuchBucket"),
    "500": refuse(500, "InternalError"),
    "503": refuse(503, "SlowDown"),
    "timeout": stall(),
}


@pytest.fixture(scope="module")
def existing(s3_server, corpus, tmp_path_factory):
    """A run that was stopped after some checkpoints."""
    place = Site(s3_server, corpus, tmp_path_factory.mktemp("existing"), *SETTINGS)
    with FaultProxy(s3_server) as proxy:
        assert place.attempt(proxy, plan=Plan(stop_at_step=15)).code == 75
    return place


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder with a certificate that nobody knows."""
    folder = tmp_path_factory.mktemp("stranger")
    make_certificate(folder)
    return folder


def strike(error, place, proxy, stranger):
    """The fault that makes `error`."""
    if error == "names":
        return with_act(RESET_BEFORE, lambda _: place.forbid_names())
    if error == "refused":
        return with_act(RESET_BEFORE, lambda _: proxy.close_door())
    if error == "tls":
        return with_act(RESET_BEFORE, lambda _: proxy.show(stranger))
    return ANSWERS[error]


def per_commit(error, read):
    """Whether every commit tries this pair; all are tried in the long job."""
    return read == "listing" or error in {"403", "503"}


PAIRS = [
    pytest.param(*pair, marks=[] if per_commit(*pair) else pytest.mark.slow)
    for pair in itertools.product(ERRORS, READS)
]


@pytest.mark.parametrize(("error", "read"), PAIRS)
def test_never_from_step_0(existing, s3_environment, through, stranger, error, read):
    """From this read on storage does not answer as it should: the exit code and one line say so, nothing is trained."""
    before, proxy = existing.saved(), through()
    proxy.plan = Since(strike(error, existing, proxy, stranger), READS[read])
    patience = ["storage.timeouts=[1, 0.1]"] if error == "timeout" else []
    try:
        ended = existing.attempt(proxy, *patience)
    finally:
        existing.allow_names()
    code, reason = ERRORS[error]
    replay = f"{error} from the first {read} on: {ended.code} {ended.said}"

    assert ended.code == code, replay
    assert [line["event"] for line in ended.log if line["event"] in {"run started", "run continued"}] == [], replay
    assert existing.saved() == before, replay
    assert len(ended.said.splitlines()) == 1, replay
    assert existing.uri in ended.said, replay
    assert re.search(reason, ended.said), replay
    note_faults(proxy)
    evidence.case("R-13", cases=1, error=error, read=read)


def test_then_it_is_continued(existing, s3_environment, through, unbroken_run):
    """After all of that the run is continued to an end that is equal to the unbroken one's."""
    ended = existing.attempt(through())

    assert ended.code == 0, ended.said
    assert len(ended.events("run continued")) == 1
    assert existing.outcome() == unbroken_run(*SETTINGS[:2])
