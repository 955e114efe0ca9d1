"""R-10: whatever an upload does, training waits only for the copy of its state."""

import json

from job.infra.storage import open_store
from tests.chaos import evidence
from tests.chaos.weather import PATH, note_faults
from tests.fault_plans import Rule, asks, stall

STALLED = 4.0  # seconds, longer than all steps together take


def test_training_goes_on_while_an_upload_stalls(site, through, unbroken_run):
    """The first upload stands still; the steps after it do not wait for it."""
    settings = ("training.max_steps=30", "training.eval_every=10")
    place = site(*settings, "checkpoint.every=5", "observe.log_every=1", pace=0.05)
    proxy = through(Rule(stall(STALLED), asks("PUT", "POST", key="data/"), [1]))
    ended = place.attempt(proxy, "storage.timeouts=[20, 20]")
    stalled = proxy.entries(kind="stall")[0].seconds
    lines = map(json.loads, open_store(place.uri, PATH).read("events.jsonl").splitlines())
    times = {line["step"]: line["time"] for line in lines if line["event"] == "step"}

    assert ended.code == 0, ended.said
    assert stalled >= STALLED
    assert times[10] - times[5] < STALLED
    assert place.outcome().chain == unbroken_run(*settings).chain
    note_faults(proxy)
    evidence.case("R-10", cases=1, equal=True)
