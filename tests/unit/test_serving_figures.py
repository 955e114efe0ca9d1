"""Figures of hand-made timelines: what each is, to the digit."""

import pytest

from job.serving.testing.figures import Timeline, figures


def answered(started, *chunks, tokens=None, prompt_tokens=0, due=None):
    """A request that was answered whole: its end is its last chunk, half a second later noticed."""
    return Timeline(
        due=started if due is None else due,
        started=started,
        chunks=chunks,
        ended=chunks[-1] + 0.5,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(chunks) if tokens is None else tokens,
    )


def failed(started, ended):
    return Timeline(due=started, started=started, ended=ended, error="status 503: busy")


ONE = answered(10.0, 10.1, 10.2, 10.4, prompt_tokens=5)
OTHER = answered(11.0, 11.3, 11.9, tokens=4, prompt_tokens=7)


def test_times_to_first_tokens():
    """TTFT runs from sending to the first chunk."""
    found = figures([ONE, OTHER])

    assert found["mean_ttft_ms"] == pytest.approx(200)
    assert found["median_ttft_ms"] == pytest.approx(200)
    assert found["std_ttft_ms"] == pytest.approx(100)


def test_percentiles():
    """Percentiles lie on the line between the two nearest values, as numpy draws it."""
    found = figures([answered(0.0, (n + 1) / 1000) for n in range(101)])

    assert [found[f"{name}_ttft_ms"] for name in ("median", "p90", "p99")] == pytest.approx([51, 91, 100])


def test_time_per_output_token():
    """TPOT divides the time after the first chunk by the tokens after the first, however many a chunk carries."""
    assert figures([ONE])["mean_tpot_ms"] == pytest.approx(150)
    assert figures([OTHER])["mean_tpot_ms"] == pytest.approx(200)


def test_one_token_has_no_time_per_token():
    """An answer of one token says nothing of TPOT and ITL, and enough of the rest."""
    found = figures([answered(0.0, 0.2)])

    assert (found["mean_tpot_ms"], found["p99_itl_ms"]) == (None, None)
    assert found["mean_e2el_ms"] == pytest.approx(200)


def test_gaps_between_chunks():
    """ITL takes all gaps of all requests as one set."""
    found = figures([ONE, OTHER])

    assert found["mean_itl_ms"] == pytest.approx((100 + 200 + 600) / 3)
    assert found["median_itl_ms"] == pytest.approx(200)


def test_end_to_end():
    """E2EL ends with the last chunk, not with what follows it."""
    assert figures([ONE, OTHER])["median_e2el_ms"] == pytest.approx(650)


def test_throughput():
    """Throughput is what whole answers bring, over the time from the first request to the last end."""
    found = figures([ONE, OTHER])

    assert found["duration"] == pytest.approx(2.4)
    assert found["request_throughput"] == pytest.approx(2 / 2.4)
    assert found["output_throughput"] == pytest.approx((3 + 4) / 2.4)
    assert found["total_token_throughput"] == pytest.approx((3 + 4 + 5 + 7) / 2.4)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (12, 7)


def test_failures_count_in_time_and_in_nothing_else():
    """A failed request brings no tokens and no latency; the time that it took is not left out."""
    found = figures([ONE, failed(10.0, 20.9)])

    assert (found["completed"], found["failed"]) == (1, 1)
    assert found["output_throughput"] == pytest.approx(3 / 10.9)
    assert found["mean_e2el_ms"] == pytest.approx(400)


def test_nothing_but_failures():
    """Where nothing was answered latencies are unknown, not zero."""
    found = figures([failed(0.0, 1.0)])

    assert (found["p99_ttft_ms"], found["mean_e2el_ms"]) == (None, None)
    assert found["output_throughput"] == 0


def test_requests_at_once():
    """Requests overlap while both are under way; one that begins as another ends does not overlap it."""
    assert figures([ONE, OTHER])["max_concurrent_requests"] == 1
    assert figures([ONE, answered(10.9, 11.0)])["max_concurrent_requests"] == 1
    assert figures([ONE, answered(10.2, 11.0), answered(10.8, 11.0)])["max_concurrent_requests"] == 3


def test_a_client_that_is_late_says_so():
    """How far the client itself fell behind its schedule stands beside the figures."""
    assert figures([ONE, answered(11.0, 11.1, due=10.75)])["max_send_delay_ms"] == pytest.approx(250)
