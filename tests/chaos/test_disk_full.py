"""A disk that is full at any byte, out of inodes or read-only: the checkpoint before stands, and a later save works."""

import resource
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from job.checkpoint import history
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.checkpoint.verify import fetch
from job.errors import AccessError, StorageError
from job.infra.directory_store import DirectoryObjectStore
from tests.chaos.cases import replayable

SIZES = {"model.safetensors": 5000, "optimizer.safetensors": 9000, "state.json": 300, "tokenizer.json": 700}


def checkpoint_at(step: int) -> Checkpoint:
    files = {name: [f"{step:04d}".encode() * (size // 4)] for name, size in SIZES.items()}
    facts = {"chain": f"{step:064x}", "eval": {"val_loss": None}, "config": {"checkpoint": {}, "x": "y" * 1500}}
    return Checkpoint(step=step, files=files, events=b'{"event":"step"}\n' * 50, facts=facts)


class FillingStore(DirectoryObjectStore):
    """A folder on a disk with `left` bytes: the system refuses what goes beyond, in the middle of a file."""

    left = 1 << 40

    @contextmanager
    def _as_much_as_fits(self, size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.left, before[1]))
        try:
            yield
            self.left -= size
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def put(self, key, content):
        with self._as_much_as_fits(sum(map(len, content))):
            return super().put(key, content)

    def create(self, key, content):
        with self._as_much_as_fits(len(content)):
            return super().create(key, content)


def begun(objects) -> CheckpointStore:
    """A claimed run with one checkpoint."""
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({})
    checkpoints.save(checkpoint_at(1))
    return checkpoints


def whole(root: Path, scratch: Path) -> list[int]:
    """Steps of the checkpoints that another process finds and reads back in full."""
    reader = CheckpointStore(DirectoryObjectStore(root))
    reader.log.refresh()
    assert not reader.log.damaged
    standing = history.checkpoints(reader.records)
    for record in standing:
        fetch(reader.objects, record, scratch)
    return [record.step for record in standing]


def half_written(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".")]


def bytes_of_a_save(root: Path) -> int:
    objects = FillingStore(root)
    checkpoints = begun(objects)
    before = objects.left
    checkpoints.save(checkpoint_at(2))
    return before - objects.left


def test_full_at_every_512th_byte(tmp_path):
    """Wherever in its files the disk is full, a save is StorageError, publishes nothing, and the next one works."""
    total = bytes_of_a_save(tmp_path / "measured")
    assert total > sum(SIZES.values())
    for left in range(0, total, 512):
        root = tmp_path / str(left)
        objects = FillingStore(root)
        checkpoints = begun(objects)
        objects.left = left
        with replayable(left):
            with pytest.raises(StorageError):
                checkpoints.save(checkpoint_at(2))
            assert (whole(root, tmp_path), half_written(root)) == ([1], [])
            objects.left = 1 << 40
            checkpoints.save(checkpoint_at(3))
            assert whole(root, tmp_path) == [1, 3]


def test_room_to_the_byte_is_enough(tmp_path, monkeypatch):
    """The figure above is the true one: with exactly so much room the save succeeds."""
    monkeypatch.setattr(time, "time", lambda: 1.7e9)  # as many digits each time
    total = bytes_of_a_save(tmp_path / "measured")
    objects = FillingStore(tmp_path / "run")
    checkpoints = begun(objects)
    objects.left = total
    checkpoints.save(checkpoint_at(2))

    assert whole(tmp_path / "run", tmp_path) == [1, 2]


@pytest.fixture
def disk(tmp_path):
    """Mounts a real file system of a given size; skipped, and said so, where that is not allowed."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        verb = ["mount", "-o", f"remount,{options}"] if mounted else ["mount", "-t", "tmpfs", "-o", options, "none"]
        done = subprocess.run([*verb, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        if mounted:
            subprocess.run(["umount", str(mounted[0])], check=True)


@pytest.mark.parametrize("pages", range(9))
def test_a_real_disk_that_is_full(disk, tmp_path, pages):
    """No space left on the device, with this many pages free for a save that needs more."""
    root = disk("size=256k") / "run"
    checkpoints = begun(DirectoryObjectStore(root))
    ballast = root.parent / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 4096 * pages)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoints.save(checkpoint_at(2))
    assert (whole(root, tmp_path), half_written(root)) == ([1], [])
    ballast.unlink()
    checkpoints.save(checkpoint_at(3))

    assert whole(root, tmp_path) == [1, 3]


@pytest.mark.parametrize("inodes", range(9))
def test_a_real_disk_without_inodes(disk, tmp_path, inodes):
    """Files can be made no more after this many: the same."""
    root = disk("size=256k,nr_inodes=200") / "run"
    checkpoints = begun(DirectoryObjectStore(root))
    fillers = []
    with suppress(OSError):
        while True:
            fillers.append(root.parent / f"filler{len(fillers)}")
            fillers[-1].touch(exist_ok=False)
    for filler in fillers[: inodes + 1]:
        filler.unlink(missing_ok=True)
    fillers = fillers[inodes + 1 :]
    with suppress(StorageError):
        checkpoints.save(checkpoint_at(2))
    saved = whole(root, tmp_path)
    assert saved in ([1], [1, 2])
    assert saved == [1] or inodes > 3
    assert half_written(root) == []
    for filler in fillers:
        filler.unlink(missing_ok=True)
    checkpoints.save(checkpoint_at(3))

    assert whole(root, tmp_path) == [*saved, 3]


def test_a_real_disk_that_became_read_only(disk, tmp_path):
    """As after an error of the device: refused, and what was saved can still be read."""
    root = disk("size=256k") / "run"
    checkpoints = begun(DirectoryObjectStore(root))
    disk("ro")
    with pytest.raises(AccessError, match="Read-only file system"):
        checkpoints.save(checkpoint_at(2))
    assert whole(root, tmp_path) == [1]
    disk("rw")
    checkpoints.save(checkpoint_at(3))

    assert whole(root, tmp_path) == [1, 3]
