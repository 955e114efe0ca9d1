"""The client on a server that says what a test wants: what is a whole answer, and what is none."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Semaphore, Thread

import pytest

from job.serving.testing import client as client_module
from job.serving.testing.client import AnswerError, ServeClient

CHUNK = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def answering():
    """A client of a server that answers every request with these pieces, and waits for its turn and so long before
    each."""
    servers = []

    def start(*pieces, status=200, wait=0.0, turns=None, **options):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                for piece in pieces:
                    if turns:
                        turns.acquire(timeout=10)
                    time.sleep(wait)
                    self.wfile.write(piece)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return ServeClient(f"http://127.0.0.1:{servers[-1].server_port}", **options)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_whole_stream(answering, monkeypatch):
    """Chunks are timed as they come, and tokens are those of the usage."""
    turns = Semaphore()
    client = answering(CHUNK, CHUNK, USAGE + DONE, wait=0.05, turns=turns)
    stream = client.stream

    def in_turn(**body):
        for chunk in stream(**body):
            yield chunk
            turns.release()  # this one has its time

    monkeypatch.setattr(client, "stream", in_turn)
    found = client.timed(0.0, {"prompt": "p"})

    assert (found.error, len(found.chunks), found.prompt_tokens, found.completion_tokens) == ("", 2, 3, 2)
    assert found.chunks[1] - found.chunks[0] > 0.04
    assert found.started < found.chunks[0] < found.chunks[1] <= found.ended


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([CHUNK, USAGE], "without [DONE]"),
        ([CHUNK, DONE], "without its usage"),
        ([USAGE, DONE], "without a token"),
        ([CHUNK, b'data: {"error": {"message": "no slot"}}\n\n', DONE], "no slot"),
        ([CHUNK, b"data: {\n\n", DONE], "not JSON"),
        ([], "without [DONE]"),
    ],
)
def test_no_whole_stream(answering, pieces, error):
    """A stream that is cut, broken off, or lacks tokens or usage is a failed request with its reason."""
    assert error in answering(*pieces).timed(0.0, {"prompt": "p"}).error


def test_a_refusal(answering):
    """A refused request fails with status and message."""
    client = answering(b'{"error": {"message": "all slots are taken"}}', status=503)

    assert client.timed(0.0, {}).error == "status 503: all slots are taken"
    with pytest.raises(AnswerError, match="status 503: all slots are taken"):
        client.complete(prompt="p")


def test_an_answer_may_take_longer_than_a_connection(answering, monkeypatch):
    """The time that a connection may take does not bound the answer."""
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.1)

    assert answering(b"{}", wait=0.4).complete(prompt="p") == {}


def test_silence_is_not_borne_for_ever(answering):
    """A server that says nothing for too long has not answered."""
    with pytest.raises(AnswerError, match="timed out"):
        answering(b"{}", wait=0.6, seconds=0.1).complete(prompt="p")
