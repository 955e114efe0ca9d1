"""What tests share: a real S3 server, started once and only if a test asks for it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once: threads would wait for each other

# The same examples in every run, so that a commit is judged by what it changed; `make chaos` draws new ones.
settings.register_profile("per commit", derandomize=True)
settings.register_profile("long", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "per commit"))

pytest.register_assert_rewrite("tests.contract.object_store_contract")

from tests.s3_server import S3Server  # noqa: E402 - after the registration

_ROOM = 8 << 30  # bytes


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with an empty bucket, shared by all tests; each takes a `fresh_uri()`."""
    venv = Path(os.environ.get("S3_SERVER_VENV", Path(__file__).parents[1] / ".venv-s3"))
    if not (venv / "bin" / "swift-proxy-server").exists():
        pytest.skip(f"no S3 server in {venv}: run `make .venv-s3`")
    with tempfile.TemporaryDirectory(prefix="s3-", dir=_memory() or tmp_path_factory.getbasetemp()) as folder:
        server = S3Server(Path(folder), venv)
        try:
            server.start()
            server.client().create_bucket(Bucket=server.bucket)
            yield server
        finally:
            server.stop()


def _memory() -> Path | None:
    """A folder in memory with room and extended attributes, which Swift needs; there it answers twice as fast."""
    folder = Path("/dev/shm")
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.setxattr(file.fileno(), "user.probe", b"1")
        return folder if shutil.disk_usage(folder).free > _ROOM else None
    except (OSError, AttributeError):
        return None


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with boto3's own variables pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return s3_server
