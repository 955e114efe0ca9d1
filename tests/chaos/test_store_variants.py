"""R-08: stores that are not quite S3 work, or are refused with 78 and a clear text; none of them makes a run unsafe."""

import base64
import re

import pytest

from job.infra.storage import open_store
from tests.chaos import evidence
from tests.chaos.harness import Plan
from tests.chaos.weather import PATH, note_faults
from tests.fault_plans import Fault, Rule, asks, edited, refuse, with_act

SETTINGS = ("training.max_steps=20", "training.eval_every=10", "checkpoint.every=5")
ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
LISTINGS = asks("LIST")


def conditional(request):
    """Whether this is a write under a condition."""
    return request.method == "PUT" and "if-none-match" in request.headers


def checksummed(request):
    """Whether this is a write with one of the newer checksums."""
    return request.method in {"PUT", "POST"} and any(
        name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum")) for name in request.headers
    )


def lagging(count):
    """Listings lack the last `count` keys they should have."""
    return edited("lag", lambda _, body: ENTRY.sub(drop(len(ENTRY.findall(body)) - count), body))


def drop(kept):
    """Keeps the first matches and removes the others."""
    left = iter(range(max(0, kept)))
    return lambda match: match[0] if next(left, None) is not None else b""


def pages(client, bucket, size):
    """Listings come in pages of `size` keys, whatever the server's own size is."""

    def page(request, _):
        last = base64.b64decode(request.query.get("continuation-token", "")).decode()  # as Swift makes its own
        found = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=request.key)
        entries = [entry for each in found for entry in each.get("Contents", [])]
        rest = [entry for entry in entries if entry["Key"] > last]
        contents = "".join(
            f"<Contents><Key>{entry['Key']}</Key><Size>{entry['Size']}</Size></Contents>" for entry in rest[:size]
        )
        more = len(rest) > size
        token = base64.b64encode(rest[size - 1]["Key"].encode()).decode() if more else ""
        token = f"<NextContinuationToken>{token}</NextContinuationToken>" if more else ""
        head = f"<Name>{bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        return f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{head}{contents}</ListBucketResult>'.encode()

    return edited(f"pages of {size}", page)


@pytest.fixture
def run_twice(site, through, unbroken_run):
    """Runs to a stop and, from there, to the end, on a store with this plan; both must be as on any store."""

    def stop_and_continue(variant, plan, *settings):
        place, proxy = site(*SETTINGS, *settings), through(plan)
        first, second = place.attempt(proxy, plan=Plan(stop_at_step=12)), place.attempt(proxy)

        assert (first.code, second.code) == (75, 0), f"{variant}: {first.said} {second.said}"
        assert place.verified() >= 2
        assert place.outcome() == unbroken_run(*SETTINGS[:2])
        note_faults(proxy)
        evidence.case("R-08", cases=1, variant=variant, works=True, equal=True)

    return stop_and_continue


def refused(site, through, variant, plan):
    """How a run on a store with this plan was refused; nothing that it could depend on may have been written."""
    place, proxy = site(*SETTINGS), through(plan)
    ended = place.attempt(proxy)

    assert ended.code == 78, f"{variant}: {ended.code} {ended.said}"
    assert place.records() == []
    note_faults(proxy)
    evidence.case("R-08", cases=1, variant=variant, works=False)
    return ended.said


def test_a_store_that_takes_no_checksums(run_twice):
    """With storage.checksums = when_required a store that refuses the newer checksums is as good as any."""
    refusal = Rule(refuse(400, "InvalidRequest"), checksummed)
    run_twice("no checksums, when_required", refusal, "storage.checksums=when_required")


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidRequest"), (501, "NotImplemented")])
def test_a_store_that_refuses_checksums(site, through, status, code):
    """As it is set at first, such a store is refused with 78, and the text names the setting that helps."""
    said = refused(site, through, f"no checksums, {status}", Rule(refuse(status, code), checksummed))

    assert "storage.checksums" in said


def test_a_store_that_ignores_conditions(site, through, s3_server):
    """A store that overwrites what must not be overwritten is found out before anything depends on it."""
    client = s3_server.client()
    overwrite = with_act(
        Fault("condition ignored"), lambda request: client.delete_object(Bucket=s3_server.bucket, Key=request.key)
    )
    said = refused(site, through, "conditions ignored", Rule(overwrite, conditional))

    assert "does not honour conditional writes" in said


def test_a_store_without_conditions(site, through):
    """A store that does not know If-None-Match is refused."""
    said = refused(site, through, "no conditions", Rule(refuse(501, "NotImplemented"), conditional))

    assert "lacks conditional writes" in said


@pytest.mark.parametrize("count", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_listings_that_lag(run_twice, count):
    """A listing of the log or of data may lack the newest keys, or all: nothing is missed, repeated or deleted."""
    run_twice(f"listings lack {count}", Rule(lagging(count), asks("LIST", key="(log|data)/")))


def test_a_run_that_is_complete_though_its_listing_lags(site, through):
    """A listing that lacks the newest records, the completion among them, does not make a finished run begin again."""
    place, proxy = site(*SETTINGS), through(Rule(lagging(2), asks("LIST", key="log/")))
    codes = [place.attempt(through()).code]
    before = place.records()
    codes.append(place.attempt(proxy).code)

    assert codes == [0, 0]
    assert place.records() == before
    note_faults(proxy)
    evidence.case("R-08", cases=1, variant="listings lack the completion", works=True)


def test_a_probe_that_is_not_listed(site, through):
    """A store that does not list at once what was written may be refused, in words."""
    said = refused(site, through, "the probe is not listed", Rule(lagging(1), asks("LIST", key="probe/")))

    assert "does not return or list what was just written" in said


@pytest.mark.parametrize("size", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_pages_of_any_size(run_twice, s3_server, size):
    """Listings in pages of any size are read to their end."""
    run_twice(f"pages of {size}", Rule(pages(s3_server.client(), s3_server.bucket, size), LISTINGS))


def test_one_large_page(s3_server, s3_environment, through, site, monkeypatch):
    """150 keys come in one page of 1,000 or in pages of the server's 100, and are the same."""
    place, proxy = site(), through(Rule(pages(s3_server.client(), s3_server.bucket, 1000), LISTINGS))
    direct = open_store(place.uri, PATH)
    for number in range(150):
        direct.put(f"data/{number:03d}", [b""])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)

    assert open_store(place.uri, PATH).keys("data/") == direct.keys("data/") == [f"data/{n:03d}" for n in range(150)]
    assert len(proxy.log) == 1
