"""Corpora over HTTP, from a real server that misbehaves."""

import hashlib
import multiprocessing
import socket

import pytest
from structlog.testing import capture_logs

from job.data import download
from job.data.cache import locked, write_json
from job.data.corpus import pull
from job.errors import AccessError, DataError, Interrupted, NotFoundError, StorageError
from tests.unit.data_support import Plan, config_for, no_store, pulled, serving, still

TEXT = bytes(range(33, 123)) * 20_000  # 1.8 MB


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Attempts follow each other at once, and no proxy stands between."""
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def config(tmp_path, server, path="/a.txt", pin=None, **settings):
    return config_for(tmp_path, server.url(path) + (f"#sha256={pin}" if pin else ""), **settings)


def leftovers(tmp_path):
    return list((tmp_path / "cache" / "partial").iterdir())


def content(corpus):
    return corpus.files[0].path.read_bytes()


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def test_a_file_is_kept_under_its_hash(tmp_path, server):
    """A downloaded file lies in the cache under its hash and format; nothing half-done is left."""
    server.plans["/a.txt"] = Plan(TEXT)
    file = pulled(config(tmp_path, server)).files[0]

    assert file.path == tmp_path / "cache" / "content" / f"{sha256(TEXT)}.txt"
    assert file.path.read_bytes() == TEXT
    assert leftovers(tmp_path) == []


def test_pinned_is_not_asked_for_again(tmp_path, server):
    """What is pinned and cached needs no server."""
    server.plans["/a.txt"] = Plan(TEXT)
    for _ in range(2):
        pulled(config(tmp_path, server, pin=sha256(TEXT)))

    assert len(server.requests) == 1


def test_unpinned_is_asked_for_by_version(tmp_path, server):
    """What is not pinned is downloaded again only if the server has another version."""
    server.plans["/a.txt"] = Plan(TEXT)
    for _ in range(2):
        pulled(config(tmp_path, server))
    assert server.requests[1][1]["If-None-Match"] == '"v1"'
    server.plans["/a.txt"] = Plan(b"new", etag='"v2"')

    assert content(pulled(config(tmp_path, server))) == b"new"


def test_cached_copy_when_the_server_is_gone(tmp_path, server):
    """Without the server the cached copy is used, with a warning."""
    server.plans["/a.txt"] = Plan(TEXT)
    pulled(config(tmp_path, server))
    server.plans["/a.txt"].fail = [503] * download.ATTEMPTS
    with capture_logs() as logs:
        corpus = pulled(config(tmp_path, server))

    assert content(corpus) == TEXT
    assert "using the cached copy" in [log["event"] for log in logs]


def test_damaged_cache_is_pulled_again(tmp_path, server):
    """A cached file that no longer has its hash is replaced."""
    server.plans["/a.txt"] = Plan(TEXT)
    pulled(config(tmp_path, server, pin=sha256(TEXT))).files[0].path.write_bytes(b"x" + TEXT[1:])

    assert content(pulled(config(tmp_path, server, pin=sha256(TEXT)))) == TEXT


def test_plain_http_without_a_pin_warns(tmp_path, server):
    """http without a pinned hash is taken with a warning that names the pin; with one there is none."""
    server.plans["/a.txt"] = Plan(TEXT)
    with capture_logs() as logs:
        pulled(config(tmp_path, server, pin=sha256(TEXT)))
        assert [log for log in logs if log["log_level"] == "warning"] == []
        pulled(config(tmp_path / "other", server))

    assert [log["pin"] for log in logs if log["log_level"] == "warning"] == [f"#sha256={sha256(TEXT)}"]


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (410, NotFoundError), (401, AccessError),
                                               (403, AccessError), (418, DataError)])  # fmt: skip
def test_refusals(tmp_path, server, status, error):
    """An answer that trying again cannot change ends the pull at once, each with its own error."""
    server.plans["/a.txt"] = Plan(fail=[status])
    with pytest.raises(error, match=f"/a.txt: {status}"):
        pulled(config(tmp_path, server))

    assert len(server.requests) == 1


def test_passing_errors_are_tried_again(tmp_path, server):
    """A server that recovers within the attempts is forgiven."""
    server.plans["/a.txt"] = Plan(TEXT, fail=[503, 500, 429, 502])

    assert content(pulled(config(tmp_path, server))) == TEXT


def test_lasting_errors_end_it(tmp_path, server):
    """A server that does not recover is a StorageError after a known number of attempts."""
    server.plans["/a.txt"] = Plan(TEXT, fail=[503] * 100)
    with pytest.raises(StorageError, match=r"503 .*\(5 attempts\)"):
        pulled(config(tmp_path, server))

    assert len(server.requests) == download.ATTEMPTS


def test_nobody_there(tmp_path):
    """A port that nobody listens on is a StorageError without the query of the address."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(StorageError) as caught:
            pulled(config_for(tmp_path, f"http://127.0.0.1:{held.getsockname()[1]}/a.txt?signature=secret"))

    assert "secret" not in str(caught.value)


def test_a_cut_body_is_resumed(tmp_path, server):
    """A connection that breaks off in the middle is continued from there, not started over."""
    server.plans["/a.txt"] = Plan(TEXT, cut_after=[500_000, 400_000])

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert ranges(server) == [None, "bytes=500000-", "bytes=900000-"]


def test_a_killed_process_is_resumed(tmp_path, server):
    """What an earlier process downloaded is continued, if the server still has that version."""
    server.plans["/a.txt"] = Plan(TEXT)
    calls = []

    def stop_soon(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        pull(config(tmp_path, server), no_store, stop_soon)
    assert list((tmp_path / "cache").glob("content/*")) == []

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert ranges(server)[1].startswith("bytes=")


def interrupted_download(tmp_path, server, pin=None):
    """Leave the first 500,000 bytes behind, as a killed process would."""
    server.plans["/a.txt"].cut_after = [500_000]
    server.plans["/a.txt"].fail = []
    answers = []

    def stop_at_the_second(*_):
        answers.append(len(server.requests))
        if len(answers) > 1 and not server.plans["/a.txt"].cut_after:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        pull(config(tmp_path, server, pin=pin), no_store, stop_at_the_second)


def test_another_version_is_started_over(tmp_path, server):
    """A partial file of an older version is not joined with a newer one."""
    server.plans["/a.txt"] = Plan(TEXT)
    interrupted_download(tmp_path, server)
    server.plans["/a.txt"] = Plan(TEXT[::-1], etag='"v2"')

    assert content(pulled(config(tmp_path, server))) == TEXT[::-1]


def test_versions_are_not_joined_by_a_crash(tmp_path, server, monkeypatch):
    """A process that dies as it begins a newer version leaves no old bytes that could pass for its start."""
    server.plans["/a.txt"] = Plan(TEXT)
    interrupted_download(tmp_path, server)
    server.plans["/a.txt"] = Plan(TEXT[::-1], etag='"v2"')
    with monkeypatch.context() as patch:
        patch.setattr(download, "write_json", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            pulled(config(tmp_path, server))

    assert content(pulled(config(tmp_path, server))) == TEXT[::-1]


def write_and_die(path, facts):
    write_json(path, facts)
    raise KeyboardInterrupt


def test_without_versions_a_download_starts_over(tmp_path, server):
    """Where the server names no versions and nothing is pinned, a partial file is not trusted."""
    server.plans["/a.txt"] = Plan(TEXT, etag=None)
    interrupted_download(tmp_path, server)
    server.requests.clear()
    pulled(config(tmp_path, server))

    assert ranges(server) == [None]


def test_a_bad_join_is_started_over_once(tmp_path, server):
    """A resumed file that misses its pinned hash is downloaded once more, whole."""
    server.plans["/a.txt"] = Plan(TEXT, etag=None)
    interrupted_download(tmp_path, server, pin=sha256(TEXT[::-1]))
    server.plans["/a.txt"] = Plan(TEXT[::-1], etag=None)
    server.requests.clear()

    assert content(pulled(config(tmp_path, server, pin=sha256(TEXT[::-1])))) == TEXT[::-1]
    assert [asked is None for asked in ranges(server)] == [False, True]


def test_a_finished_partial_file_is_recognised(tmp_path, server):
    """A process that was stopped after the last byte does not cost a second download."""
    server.plans["/a.txt"] = Plan(TEXT)

    def stop_when_hashing(*_):
        partial = [path for path in leftovers(tmp_path) if not path.suffix]
        if partial and partial[0].stat().st_size == len(TEXT):
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        pull(config(tmp_path, server), no_store, stop_when_hashing)

    assert content(pulled(config(tmp_path, server))) == TEXT
    assert ranges(server)[1] == f"bytes={len(TEXT)}-"


def test_a_server_without_ranges(tmp_path, server):
    """A server that ignores Range sends the whole file again, and it comes out right."""
    server.plans["/a.txt"] = Plan(TEXT, ranges=False, cut_after=[500_000])

    assert content(pulled(config(tmp_path, server))) == TEXT


def test_always_truncated(tmp_path, server):
    """A body that never grows is a StorageError, and nothing looks whole."""
    server.plans["/a.txt"] = Plan(TEXT, cut_after=[0] * 100)
    with pytest.raises(StorageError):
        pulled(config(tmp_path, server))

    assert list((tmp_path / "cache").glob("content/*")) == []


def test_wrong_hash(tmp_path, server):
    """A file that is not what was pinned is an error with both hashes, and is removed."""
    server.plans["/a.txt"] = Plan(TEXT)
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, got {sha256(TEXT)}"):
        pulled(config(tmp_path, server, pin="0" * 64))

    assert leftovers(tmp_path) == []
    assert list((tmp_path / "cache").glob("content/*")) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_too_long(tmp_path, server, says_length):
    """A file longer than data.max_bytes is refused, announced or not, and its partial file removed."""
    server.plans["/a.txt"] = Plan(TEXT, says_length=says_length)
    with pytest.raises(DataError, match=r"data\.max_bytes=1000"):
        pulled(config(tmp_path, server, max_bytes=1000))

    assert leftovers(tmp_path) == []


def test_encoded_body(tmp_path, server):
    """A body that is compressed in transit, unasked, is refused: it could be anything once unpacked."""
    server.plans["/a.txt"] = Plan(TEXT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(DataError, match="sent as gzip"):
        pulled(config(tmp_path, server))


def test_redirects_are_followed(tmp_path, server):
    """Up to five redirects lead to the file."""
    for number in range(5):
        server.plans[f"/{number}.txt"] = Plan(location=f"/{number + 1}.txt")
    server.plans["/5.txt"] = Plan(TEXT)

    assert content(pulled(config(tmp_path, server, "/0.txt"))) == TEXT


def test_redirects_in_circles(tmp_path, server):
    """More than five redirects are refused."""
    server.plans["/a.txt"] = Plan(location="/a.txt")
    with pytest.raises(DataError, match="more than 5 redirects"):
        pulled(config(tmp_path, server))

    assert len(server.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/a.txt", "gopher://127.0.0.1/"])
def test_redirects_elsewhere(tmp_path, server, location):
    """A redirect that leaves http and https is refused."""
    server.plans["/a.txt"] = Plan(location=location)
    with pytest.raises(DataError, match="neither http nor https"):
        pulled(config(tmp_path, server))


def test_a_dripping_server_is_left(tmp_path, server, monkeypatch):
    """A body that comes a few bytes a minute counts as stalled, however long each read may take."""
    server.plans["/a.txt"] = Plan(TEXT)
    monkeypatch.setattr(download, "CHUNK", 1000)
    minutes = iter(range(0, 10_000_000, 61))
    (tmp_path / "cache").mkdir()
    slow = download.Download(
        server.url("/a.txt"),
        tmp_path / "cache" / "a",
        resumes_blindly=False,
        max_bytes=1 << 30,
        advance=still,
        clock=lambda: next(minutes),
    )
    with pytest.raises(StorageError, match=r"only \d+ bytes in 60 s"):
        slow.run(download.Validators())


def wait_for_lock(folder, entered):
    with locked(folder, "name", still):
        entered.set()


def test_the_lock_keeps_a_second_process_out(tmp_path):
    """While one process holds a lock another waits, and goes on when it is given back."""
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    with locked(tmp_path, "name", still):
        other = context.Process(target=wait_for_lock, args=(tmp_path, entered))
        other.start()
        assert not entered.wait(0.5)
    other.join(10)

    assert entered.is_set()


def test_waiting_for_the_lock_can_be_interrupted(tmp_path):
    """A process that waits for another still hears the request to stop."""

    def stop(*_):
        raise Interrupted("asked to stop")

    with locked(tmp_path, "name", still), pytest.raises(Interrupted), locked(tmp_path, "name", stop):
        pass


def test_a_server_that_never_answers(tmp_path, monkeypatch):
    """A server that takes the request and says nothing is a StorageError after so many attempts, and leaves nothing."""
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)
        with pytest.raises(StorageError, match=rf"{download.ATTEMPTS} attempts"):
            pulled(config_for(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/a.txt"))

    assert not list((tmp_path / "cache").glob("content/*"))
