"""R-07, R-09, R-10: answers that are lost, stores that are away, uploads that stall, before a real S3 server."""

import signal
import time

import pytest

from job.checkpoint.store import Checkpoint, CheckpointStore
from job.infra.storage import open_store
from tests.chaos import evidence
from tests.chaos.weather import PATH, SCALE, SEED, Hurried, note_faults
from tests.fault_plans import (
    RESET_AFTER,
    RESET_BEFORE,
    First,
    Outage,
    Rule,
    Since,
    asks,
    commits,
    slow,
    stall,
    with_act,
)

SHORT = ("training.max_steps=20", "training.eval_every=10", "checkpoint.every=5")
LOST = "checkpoint lost, the one before it stands, training goes on"
UPLOADS = asks("PUT", "POST", key="data/")
PATIENT = "storage.timeouts=[5, 20]"  # where requests are counted: none is repeated for being slow
EVERYTHING = asks("LIST", "GET", "HEAD", "PUT", "POST", "DELETE")
FACTS = {"chain": "0" * 64, "eval": {"val_loss": None}}


@pytest.mark.parametrize("commits_made", [60, pytest.param(round(1000 * SCALE), marks=pytest.mark.slow)])
def test_own_records_are_recognised(s3_server, s3_environment, through, site, monkeypatch, commits_made):
    """The answer to every commit is lost: its repetition, or a look, finds it done; each record is there once."""
    place, proxy, started = site(), through(First(RESET_AFTER, commits)), time.monotonic()
    monkeypatch.setattr("botocore.endpoint.time", Hurried())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    checkpoints = CheckpointStore(open_store(place.uri, PATH))
    checkpoints.claim({})
    for step in range(1, commits_made):
        if step % 10 == 0:
            checkpoints.save(Checkpoint(step=step, files={"state.json": [b"{}"]}, events=b"", facts=FACTS))
        else:
            checkpoints.prune([])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    answers = {}
    for entry in proxy.entries(commits):
        answers.setdefault(entry.request.name, []).append(entry.status)

    assert [statuses[0] for statuses in answers.values()] == [200] * commits_made
    assert {tuple(statuses[1:]) for statuses in answers.values()} <= {(412,), ()}  # (): botocore's retries are used up
    assert [record.seq for record in place.records()] == list(range(1, commits_made + 1))
    assert [record.step for record in place.saved()] == list(range(10, commits_made, 10))
    note_faults(proxy)
    seconds = time.monotonic() - started
    evidence.case("R-07", cases=commits_made, seed=SEED, seconds=seconds, recognised=commits_made)


def run_with_lost_answer(place, through, number, sign=None):
    """An attempt to whose `number`th commit the answer is lost; if given, a signal arrives at that moment."""
    fault = with_act(RESET_AFTER, lambda _: sign and place.signal(sign))
    proxy = through(Rule(fault, commits, [number]))
    ended = place.attempt(proxy)
    met = [entry.request.name for entry in proxy.entries(kind="reset_after")]
    assert len(met) == 1
    note_faults(proxy)
    return ended, met[0]


def assert_each_once(place):
    """No object belongs to two records, and no step was committed twice in a row of checkpoints."""
    keys = [stored.key for record in place.saved() for stored in record.objects]
    steps = [record.step for record in place.saved()]

    assert len(keys) == len(set(keys))
    assert steps == sorted(set(steps))


numbers = pytest.mark.parametrize(
    "number", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 3, 4, 5))]
)


@pytest.mark.slow
@numbers
def test_a_lost_answer_costs_nothing(site, through, unbroken_run, number):
    """The answer to a commit is lost: the run goes on, with one record for each checkpoint, and ends equal."""
    place = site(*SHORT, pace=0.03)
    ended, _ = run_with_lost_answer(place, through, number)

    assert ended.code == 0, f"commit {number}: {ended.said}"
    assert_each_once(place)
    assert place.outcome() == unbroken_run(*SHORT[:2])
    evidence.case("R-07", cases=1, equal=True)


@numbers
def test_killed_when_the_answer_is_lost(site, through, unbroken_run, number):
    """Killed before it could learn that its commit succeeded: the next attempt continues from that very record."""
    place = site(*SHORT, pace=0.03)
    ended, key = run_with_lost_answer(place, through, number, signal.SIGKILL)
    committed = place.records()[-1]
    again = place.attempt(through())

    assert (ended.code, again.code) == (-9, 0), f"commit {number}: {again.said}"
    assert key.endswith(f"{committed.seq:012d}.json")
    assert_each_once(place)
    assert place.outcome() == unbroken_run(*SHORT[:2])
    if committed.kind == "checkpoint":
        assert [line["step"] for line in again.events("run continued")] == [committed.step]
    evidence.case("R-07", cases=1, kills=1, equal=True)


@numbers
def test_stopped_when_the_answer_is_lost(site, through, unbroken_run, number):
    """Asked to stop while the answer to a commit is lost: saved once, and continued to the same end."""
    place = site(*SHORT, pace=0.03)
    ended, _ = run_with_lost_answer(place, through, number, signal.SIGTERM)

    assert ended.code in {75, 0}, f"commit {number}: {ended.said}"  # 0 when there was nothing left to do
    assert ended.code == 0 or place.attempt(through()).code == 0
    assert_each_once(place)
    assert place.outcome() == unbroken_run(*SHORT[:2])
    evidence.case("R-07", cases=1, equal=True)


SEVERAL = ("training.max_steps=50", "training.eval_every=10", "checkpoint.every=5")


def test_a_store_that_is_away_for_one_save(site, through, unbroken_run):
    """One save is lost, said and counted; training goes on and ends as if nothing had been."""
    place, proxy = site(*SEVERAL, pace=0.05), through(Outage(RESET_BEFORE, first=2, count=1))
    ended = place.attempt(proxy, PATIENT)
    lost = ended.events(LOST)

    assert ended.code == 0, ended.said
    assert [line["reason"] for line in lost] == ["storage"] * len(lost)
    assert len(lost) == 1
    assert f'pretrain_checkpoint_failures_total{{reason="storage"}} {len(lost)}.0' in place.metrics()
    assert place.verified() >= 2
    assert place.outcome() == unbroken_run(*SEVERAL[:2])
    note_faults(proxy)
    evidence.case("R-09", cases=1, equal=True)


def test_a_store_that_is_away_for_three_saves(site, through, unbroken_run):
    """Three saves lost in a row end the run with 69; the checkpoint before them stands and is continued."""
    place, proxy = site(*SEVERAL, pace=0.05), through(Outage(RESET_BEFORE, first=2, count=3))
    ended = place.attempt(proxy, PATIENT)
    saved = place.saved()

    assert ended.code == 69, ended.said
    assert "3 saves in a row were lost" in ended.said
    assert f"step {saved[-1].step}" in ended.said, "the last step that stands is not said"
    assert [line["in_a_row"] for line in ended.events(LOST)] == [1, 2, 3]
    assert len(saved) == place.verified() == 1

    again = place.attempt(through())

    assert again.code == 0, again.said
    assert [line["step"] for line in again.events("run continued")] == [saved[-1].step]
    assert place.outcome() == unbroken_run(*SEVERAL[:2])
    note_faults(proxy)
    evidence.case("R-09", cases=1, equal=True)


def test_a_store_that_is_away_from_the_start(site, through):
    """A run whose store never answers ends with 69 after all tries, in one line that names the store."""
    place, proxy = site(*SEVERAL), through(Rule(RESET_BEFORE, EVERYTHING))
    ended = place.attempt(proxy)

    assert ended.code == 69
    assert ended.said.startswith(f"StorageError: list {place.uri}")
    assert len(ended.said.splitlines()) == 1
    assert len(proxy.log) == 8
    assert place.records() == []
    note_faults(proxy)
    evidence.case("R-09", cases=1)


PATIENCE = 1.5  # seconds to connect and to read, in every attempt


def test_a_stalled_upload_is_given_up(site, through, unbroken_run):
    """An upload in which no byte moves is broken off within the limit and sent again; nothing is lost."""
    place, proxy = site(*SHORT, pace=0.03), through(Rule(stall(60), UPLOADS, [2, 6]))
    ended = place.attempt(proxy)
    stalls = [entry.seconds for entry in proxy.entries(kind="stall")]

    assert ended.code == 0, ended.said
    assert ended.events(LOST) == []
    assert len(stalls) == 2
    assert max(stalls) < 10 * PATIENCE  # and not 60
    assert place.outcome() == unbroken_run(*SHORT[:2])
    note_faults(proxy)
    evidence.case("R-10", cases=2, longest_stall=max(stalls), limit=PATIENCE, equal=True)


@pytest.mark.slow
def test_uploads_that_stall_whenever_they_are_tried(site, through, unbroken_run):
    """A save none of whose tries moves is lost within the limit of all tries; the next one succeeds."""
    place, proxy = site(*SEVERAL, pace=0.05), through(Outage(stall(60), first=2, count=1))
    ended = place.attempt(proxy)

    assert ended.code == 0, ended.said
    assert len(ended.events(LOST)) == 1
    assert max(entry.seconds for entry in proxy.entries(kind="stall")) < 10 * PATIENCE
    assert place.outcome() == unbroken_run(*SEVERAL[:2])
    note_faults(proxy)
    evidence.case("R-10", cases=1, equal=True)


@pytest.mark.slow
def test_slow_uploads(site, through, unbroken_run):
    """Uploads at a crawl take their time; the run ends, and every bit is equal."""
    place, proxy = site(*SHORT, pace=0.03), through(Since(slow(300_000), UPLOADS))
    ended = place.attempt(proxy, PATIENT)

    assert ended.code == 0, ended.said
    assert place.verified() >= 2
    assert place.outcome() == unbroken_run(*SHORT[:2])
    note_faults(proxy)
    evidence.case("R-10", cases=1, equal=True)


def test_a_probe_whose_answer_is_lost(site, through):
    """The answer to the probe's first write is lost: its repetition meets 412, no reason to refuse the store."""
    place, proxy = site(*SHORT), through(Rule(RESET_AFTER, asks("PUT", key="probe/"), [1]))
    ended = place.attempt(proxy, PATIENT)

    assert ended.code == 0, ended.said
    assert [entry.status for entry in proxy.entries(asks("PUT", key="probe/"))] == [200, 412, 412]
    note_faults(proxy)
    evidence.case("R-07", cases=1)
