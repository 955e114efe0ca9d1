"""The files baked into the image: taken from a folder or downloaded, and only if they are what they should be."""

import hashlib
import http.server
import threading

import pytest

from job.data import assets as module
from job.data.assets import collect
from job.data.builtin import Asset
from job.errors import JobError

CONTENT = b"A public text.\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(tmp_path):
    """An address on loopback that has the file."""
    published = tmp_path / "published"
    published.mkdir()
    (published / "text.txt").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(published))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/text.txt"
        server.shutdown()


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The folder that the build was given."""
    folder = tmp_path / "given"
    folder.mkdir()
    monkeypatch.setenv("GPT_JOB_ASSETS", str(folder))
    return folder


def test_a_given_file_needs_no_network(given, tmp_path):
    """A file of the right content is taken from the folder as it is."""
    (given / "text.txt").write_bytes(CONTENT)
    collect([Asset("text.txt", "http://127.0.0.1:9/text.txt", SHA256)], tmp_path / "image", False)

    assert (tmp_path / "image" / "text.txt").read_bytes() == CONTENT


def test_a_wrong_file_is_passed_over_for_the_published_one(given, url, tmp_path):
    """What is named right but is something else does not come into the image."""
    (given / "text.txt").write_bytes(b"Something else.\n")
    collect([Asset("text.txt", url, SHA256)], tmp_path / "image", False)

    assert (tmp_path / "image" / "text.txt").read_bytes() == CONTENT


@pytest.mark.parametrize("missing_allowed", [True, False])
def test_a_download_of_another_content_never_comes_in(given, url, tmp_path, missing_allowed):
    """A wrong hash ends the build or leaves the file out; it is in the image in neither case."""
    asset = Asset("text.txt", url, "0" * 64)
    try:
        assert collect([asset], tmp_path / "image", missing_allowed) == [asset]
    except JobError:
        assert not missing_allowed

    assert not (tmp_path / "image" / "text.txt").exists()


def test_the_image_carries_both_texts_and_both_tokenizer_files():
    """The list is the job's own: what it looks for at run time under these names and hashes."""
    assert {asset.name for asset in module.ASSETS} == {
        "the-verdict.txt",
        "tinyshakespeare.txt",
        "vocab.bpe",
        "encoder.json",
    }
