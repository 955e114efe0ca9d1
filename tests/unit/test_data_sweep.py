"""What is removed from the cache by itself, and what never is."""

import os
import time

import pytest
from structlog.testing import capture_logs

from job.data.cache import free_lock, locked
from job.data.sweep import KEPT_DAYS, sweep
from tests.unit.data_support import config_for, pulled, still

URL, PRINT = "a" * 64, "f" * 64
HALF_MADE = {
    URL: [f"partial/{URL}", f"partial/{URL}.json", f"partial/{URL}.parts"],
    f"tokens-{PRINT}": [f"tokens/.{PRINT}.partial/train_000000.bin", f"tokens/.{PRINT}.partial/journal.json"],
    "": [f"sources/.{URL}.json.123.partial"],
}
LOCKED = [lock for lock in HALF_MADE if lock]
WHOLE = [f"content/{URL}.txt", f"sources/{URL}.json", f"tokens/{PRINT}/meta.json", f"hashes/{URL}.json", "notes.txt"]


@pytest.fixture
def cache(tmp_path):
    """A cache with whole files and half-made ones, all of them a month old."""
    for name in (*WHOLE, *(name for names in HALF_MADE.values() for name in names)):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    make_old(tmp_path / "cache")
    return tmp_path / "cache"


def make_old(folder):
    for path in [*folder.rglob("*")]:
        os.utime(path, (time.time() - 30 * 86400,) * 2)


def left(cache):
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_is_old_and_free_goes(cache):
    """Half-made files and folders of last month are removed, what is whole stays, and the log says how much it was."""
    with capture_logs() as logs:
        sweep(cache, time.time())

    assert left(cache) == set(WHOLE)
    assert sorted(log["bytes"] for log in logs) == [5, 10, 15]
    assert not (cache / "tokens" / f".{PRINT}.partial").exists()


@pytest.mark.parametrize("lock", LOCKED)
def test_what_somebody_works_on_stays(cache, lock):
    """However old it is, what is locked is not touched."""
    with locked(cache, lock, still):
        sweep(cache, time.time())

    assert left(cache) == {*WHOLE, *HALF_MADE[lock]}


@pytest.mark.parametrize("lock", HALF_MADE)
def test_what_was_written_lately_stays(cache, lock):
    """One young file keeps all that belongs to it: the next start goes on with it."""
    os.utime(cache / HALF_MADE[lock][-1])
    sweep(cache, time.time())

    assert left(cache) == {*WHOLE, *HALF_MADE[lock]}


def test_the_age_is_counted_in_days(cache):
    """The limit lies where it says."""
    month_ago = time.time() - 30 * 86400
    sweep(cache, month_ago + (KEPT_DAYS - 0.1) * 86400)
    assert len(left(cache)) == len(WHOLE) + 6
    sweep(cache, month_ago + (KEPT_DAYS + 0.1) * 86400)

    assert left(cache) == set(WHOLE)


def test_locks_are_given_back(cache):
    """What was swept can be begun anew."""
    sweep(cache, time.time())
    for lock in LOCKED:
        with free_lock(cache, lock) as free:
            assert free


def test_every_pull_sweeps(cache, tmp_path):
    """Nobody has to ask for it."""
    (tmp_path / "a.txt").write_text("text")
    pulled(config_for(tmp_path, tmp_path / "a.txt"))

    assert left(cache) == set(WHOLE)


def test_a_cache_without_anything(tmp_path):
    """An empty cache, or none, is nothing to speak of."""
    with capture_logs() as logs:
        sweep(tmp_path / "none", time.time())

    assert logs == []
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_removed_is_a_warning(cache):
    """A cache that is not as it should be does not end the job."""
    (cache / "locks").write_text("no folder")
    with capture_logs() as logs:
        sweep(cache, time.time())

    assert [log["event"] for log in logs] == ["what is left over in the cache stays"]
    assert set(HALF_MADE[URL]) <= left(cache)
