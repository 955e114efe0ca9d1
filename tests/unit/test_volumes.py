"""In the image a local run has to be on something that outlives the container; elsewhere nobody asks."""

import os
import subprocess
import sys

import pytest

from job.errors import ConfigError
from job.infra.volumes import IMAGE_MARK, require_kept

IN_IMAGE = {IMAGE_MARK: "gpt-pretrain-job:test"}
# What a container sees: an overlay as root, a named volume, a bind mount with a space, memory, one mount over another.
MOUNTS = r"""
600 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/a:/b
601 600 0:51 / /proc rw - proc proc rw
602 600 0:52 / /dev rw - tmpfs tmpfs rw
603 600 254:0 /volumes/gpt-runs/_data /runs rw,relatime master:1 - ext4 /dev/vda rw
604 600 254:0 /home/me /my\040runs rw,relatime - ext4 /dev/vda rw
605 600 0:53 / /tmp rw - tmpfs tmpfs rw
606 600 254:0 /x /shadowed rw - ext4 /dev/vda rw
607 606 0:54 / /shadowed rw - tmpfs tmpfs rw
608 605 254:0 /kept /tmp/kept rw - xfs /dev/vdb rw
"""


@pytest.fixture
def mounts(tmp_path):
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS.lstrip())
    return path


@pytest.mark.parametrize(
    "run_uri", ["/runs", "/runs/not/there/yet", "file:///runs/one", "/my runs/one", "/tmp/kept/run", "s3://bucket/run"]
)
def test_a_run_on_a_volume_or_in_a_bucket_is_taken(run_uri, mounts):
    """A mounted folder, however deep below its mount point, and a bucket are kept."""
    require_kept(run_uri, IN_IMAGE, mounts)


@pytest.mark.parametrize("run_uri", ["/data/run", "/runs-of-mine", "file:///srv/run", "/tmp/run", "/shadowed/run"])
def test_a_run_that_goes_with_the_container_is_refused(run_uri, mounts):
    """The container's own files, memory, and a folder whose name only begins like a volume's are not kept."""
    with pytest.raises(ConfigError, match="not on a mounted volume"):
        require_kept(run_uri, IN_IMAGE, mounts)


def test_the_refusal_says_where_the_run_would_be_and_what_to_do(mounts, monkeypatch):
    """A relative address is shown as the folder that it means, with each way out."""
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError) as refusal:
        require_kept("elsewhere/quickstart", IN_IMAGE, mounts)

    said = str(refusal.value)
    assert all(word in said for word in ["/elsewhere/quickstart", "docker run -v", "s3://", "--ephemeral"])


def test_nobody_asks_outside_the_image(mounts):
    """Without the image's mark any folder will do."""
    require_kept("/data/run", {}, mounts)


@pytest.mark.parametrize("command", [["train"], ["weights", "import", "--weights", "/nowhere"]])
def test_commands_that_begin_a_run_refuse_with_78(command):
    """The commands themselves end with the code of a wrong config before they write anything."""
    environment = {**os.environ, **IN_IMAGE, "GPT_JOB_SET": "run_uri=/no-such-folder/run"}
    job = [sys.executable, "-m", "job", *command]
    ended = subprocess.run(job, env=environment, capture_output=True, text=True, check=False)

    assert (ended.returncode, "not on a mounted volume" in ended.stderr) == (78, True)
