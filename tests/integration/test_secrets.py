"""Secrets of the environment, each a canary of its own: looked for in everything that a run says or leaves."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.integration.command import IMPATIENT

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY0ACCESS0KEY",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+Key0000000000000000000000",
    "AWS_SESSION_TOKEN": "canary-session-token-000000000000==",
}
PASSWORDS = ("canary-endpoint-password", "canary-proxy-password", "canary-gateway-password", "canary-corpus-password")
CANARIES = ("CANARY0ACCESS0KEY", "canary/secret", "canary%2Fsecret", "canary-session-token", *PASSWORDS)
BREAKS = (
    "-c",
    "import job.training.trainer as t, os\n"
    "def broken(*_): raise RuntimeError(f'the environment was {dict(os.environ)}')\n"
    "t.Trainer.run = broken\n"
    "import job.cli; job.cli.main(prog_name='gpt-job')",
)


class Refusing(BaseHTTPRequestHandler):
    """A store that refuses everything, and repeats in its answer all that it was told."""

    protocol_version = "HTTP/1.1"

    def _refuse(self):
        told = "".join(f"{name}: {value}; " for name, value in self.headers.items()).replace("&", "+").replace("<", "")
        said = f"<Error><Code>{self.server.code}</Code><Message>{self.path.partition('?')[0]} {told}</Message></Error>"
        body = said.encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _refuse  # noqa: N815 - http.server's names

    def log_message(self, *_):
        pass


SLOW = [pytest.param(code, marks=pytest.mark.slow) for code in ("InvalidAccessKeyId", "ExpiredToken")]


@pytest.fixture(params=["AccessDenied", "SignatureDoesNotMatch", *SLOW])
def refusing(request):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.code = request.param
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def leaks(world, ending):
    """Where a canary is found: in what was said, in the termination message, in any file that was left."""
    texts = {"stdout": ending.stdout, "stderr": ending.stderr, "termination": str(ending.termination)}
    for path in world.folder.rglob("*"):
        if path.is_file():
            texts[str(path.relative_to(world.folder))] = path.read_bytes().decode("latin-1")
    return [(name, canary) for name, text in texts.items() for canary in CANARIES if canary in text]


def test_a_run_in_a_folder_leaks_nothing(world):
    """Success: no canary in the most talkative log, metrics, checkpoints, records, events, termination message."""
    gateway = f"http://user:{PASSWORDS[2]}@127.0.0.1:9"
    ending = world.gpt_job("--verbose train", "--set", f"observe.pushgateway_url={gateway}", **SECRETS)

    assert ending.codes == {0}
    assert leaks(world, ending) == []


def test_a_bug_leaks_nothing(world):
    """A crash whose own text holds the whole environment."""
    with world.training(launcher=BREAKS, **SECRETS) as job:
        ending = job.ending()

    assert ending.codes == {1}
    assert "the environment was" in ending.reason
    assert leaks(world, ending) == []


def test_a_refusal_leaks_nothing(world, refusing):
    """A store that refuses and repeats every header, behind an address with a password: a clear end, no canary."""
    environ = SECRETS | {
        "AWS_ENDPOINT_URL_S3": f"http://user:{PASSWORDS[0]}@{refusing}",
        "AWS_REGION": "us-east-1",
        "HTTPS_PROXY": f"http://user:{PASSWORDS[1]}@127.0.0.1:9",
    }
    settings = ("--set", "run_uri=s3://bucket/run", "--set", "storage.addressing_style=path")
    with world.job("--verbose train", *settings, launcher=IMPATIENT, **environ) as job:
        ending = job.ending()

    assert ending.codes in ({77}, {69})
    assert leaks(world, ending) == []


def test_an_address_with_a_password_leaks_nothing(world):
    """A corpus behind a password is refused without repeating it: it would be stored with the run."""
    ending = world.train(f"data.corpus=https://user:{PASSWORDS[3]}@127.0.0.1:9/text.txt")

    assert ending.codes == {78}
    assert [name for name, _ in leaks(world, ending)] == []


def test_the_search_is_not_blind(world):
    """A canary in any file or word is found."""
    (world.folder / "x").write_bytes(b"\0" + CANARIES[1].encode())
    ending = world.gpt_job("config show", "--set", f"data.corpus={CANARIES[3]}")

    assert {("x", CANARIES[1]), ("stdout", CANARIES[3])} <= set(leaks(world, ending))
