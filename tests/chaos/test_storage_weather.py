"""R-06: with faults at one request in five, and more, a run ends and every bit is that of an unbroken one."""

import time
from collections import Counter

import pytest

from tests.chaos import evidence
from tests.chaos.weather import SCALE, SEED, note_faults
from tests.fault_plans import Weather, every_kind

OFTEN = ("checkpoint.every=5", "checkpoint.max_failures=1000")
RATES = (0.05, 0.1, 0.2, 0.4, 0.6)


@pytest.mark.parametrize(("steps", "least"), [(150, 2), pytest.param(300, 20, marks=pytest.mark.slow)])
def test_a_run_in_bad_weather(site, through, unbroken_run, steps, least):
    """Faults of every kind at one request in five: the job ends with 0, all checkpoints verify, every bit is equal."""
    kinds, met, saves, number, started = every_kind(rate=4e6), Counter(), 0, 0, time.monotonic()
    settings = (f"training.max_steps={steps}", "training.eval_every=50")
    while min(met[fault.kind] for fault in kinds) < least:
        weather = Weather(SEED + number, 0.2, kinds)
        place, proxy = site(*settings, *OFTEN), through(weather)
        ended = place.attempt(proxy)

        assert ended.code == 0, f"{weather}: {ended.said}"
        assert place.verified() >= 2, weather
        assert place.outcome() == unbroken_run(*settings), weather
        met, saves, number = met + note_faults(proxy), saves + len(place.saved()), number + 1
    evidence.case("R-06", cases=number, saves=saves, seed=SEED, seconds=time.monotonic() - started, equal=True)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(round(10 * SCALE)))
@pytest.mark.parametrize("rate", RATES)
def test_runs_in_any_weather(site, through, unbroken_run, rate, place):
    """Whatever the rate of faults: started until it is done, a run loses nothing and every bit is equal."""
    steps = ("training.max_steps=100", "training.eval_every=50")
    home, codes, proxies, started = site(*steps, *OFTEN), [], [], time.monotonic()
    while not codes or codes[-1] == 69:
        weather = Weather(SEED * 1000 + place * 100 + len(codes), rate, every_kind(rate=4e6))
        proxies.append(through(weather))
        ended = home.attempt(proxies[-1])
        codes.append(ended.code)
        assert ended.code in {0, 69}, f"{weather}, attempt {len(codes)}: {ended.said}"
        assert len(codes) < 200, f"{weather}: never done"
    note_faults(*proxies)

    assert home.verified() >= 1, f"rate {rate}, place {place}, seed {SEED}"
    assert home.outcome() == unbroken_run(*steps), f"rate {rate}, place {place}, seed {SEED}"
    evidence.case("R-06", cases=1, rate=rate, seed=SEED, seconds=time.monotonic() - started, equal=True)
