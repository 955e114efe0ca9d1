"""What tests share: a real S3 server, started once and only if a test asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contract.object_store_contract")

from tests.s3_server import S3Server  # noqa: E402 - after the registration


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with an empty bucket, shared by all tests; each takes a `fresh_uri()`."""
    venv = Path(os.environ.get("S3_SERVER_VENV", Path(__file__).parents[1] / ".venv-s3"))
    if not (venv / "bin" / "swift-proxy-server").exists():
        pytest.skip(f"no S3 server in {venv}: run `make .venv-s3`")
    server = S3Server(tmp_path_factory.mktemp("s3"), venv)
    try:
        server.start()
        server.client().create_bucket(Bucket=server.bucket)
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with boto3's own variables pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return s3_server
