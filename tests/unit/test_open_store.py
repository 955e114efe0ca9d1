"""Which URI names which store."""

import subprocess
import sys

import pytest

from job.config import StorageConfig
from job.errors import ConfigError
from job.infra.storage import open_store


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_folder(tmp_path, form):
    """A path and a file URI name a folder; opening it makes nothing."""
    uri = form.format(tmp_path / "run")
    store = open_store(uri, StorageConfig())

    assert store.uri == uri
    assert not (tmp_path / "run").exists()
    store.put("a", [b"abc"])
    assert (tmp_path / "run" / "a").read_bytes() == b"abc"


def test_relative_folder(tmp_path, monkeypatch):
    """A relative folder is below the working directory of the moment it was opened."""
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/one", StorageConfig())
    monkeypatch.chdir("/")
    store.put("a", [b"abc"])

    assert (tmp_path / "runs" / "one" / "a").exists()


def test_home(tmp_path, monkeypatch):
    """`~` is the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    open_store("~/run", StorageConfig()).put("a", [b"abc"])

    assert (tmp_path / "run" / "a").exists()


def test_file_uri_is_unquoted(tmp_path):
    """A file URI may quote characters."""
    open_store(f"file://{tmp_path}/a%20run", StorageConfig()).put("a", [b"abc"])

    assert (tmp_path / "a run" / "a").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/run",
        "http://host/run",
        "https://host/run",
        "s3://",
        "s3:///run",
        "s3:/bucket/run",
        "file://host/run",
    ],
)
def test_what_names_no_store(uri):
    """Other schemes, and slips of the pen, are refused with what is supported; they do not become folders."""
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX, file:///FOLDER and folders"):
        open_store(uri, StorageConfig())


def test_folders_need_no_boto3(tmp_path):
    """boto3 is imported only when a bucket is opened."""
    program = (
        "import sys; from job.config import StorageConfig; from job.infra.storage import open_store; "
        f"open_store({str(tmp_path)!r}, StorageConfig()); print('boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
