"""What the object store on a folder does when the file system refuses, is full, or holds what is not ours."""

import errno
import os
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from job.errors import AccessError, ConfigError, StorageError
from job.infra.directory_store import DirectoryObjectStore
from job.infra.object_store import UNSAFE, folder_errors

VERBS = {
    "put": lambda store, target: store.put("log/a", [b"abc"]),
    "create": lambda store, target: store.create("log/a", b"abc"),
    "get": lambda store, target: store.get("log/a", target),
    "read": lambda store, target: store.read("log/a"),
    "size": lambda store, target: store.size("log/a"),
    "keys": lambda store, target: store.keys("log/"),
    "all keys": lambda store, target: store.keys(""),
    "delete": lambda store, target: store.delete("log/a"),
    "digest": lambda store, target: store.digest("log/a"),
    "unfinished": lambda store, target: store.unfinished("log/"),
    "abandon": lambda store, target: store.abandon("log/a"),
}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return DirectoryObjectStore(root)


@contextmanager
def file_size_limit(size):
    """Writing beyond `size` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_rights(folder):
    """Nobody may enter `folder`, the administrator included."""
    administrator = os.geteuid() == 0
    folder.chmod(0)
    try:
        if administrator:
            os.seteuid(65534)
        yield
    finally:
        if administrator:
            os.seteuid(0)
        folder.chmod(0o700)


def files(folder):
    """Every file below `folder`, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("verb", VERBS)
def test_refused_is_not_absent(store, root, tmp_path, verb):
    """Without rights to the folder every verb is AccessError; never KeyError, never an empty listing."""
    store.put("log/a", [b"abc"])
    with no_rights(root), pytest.raises(AccessError):
        VERBS[verb](store, tmp_path / "out")


@pytest.mark.parametrize("verb", VERBS)
def test_root_that_is_a_file(root, tmp_path, verb):
    """A file where the folder should be is StorageError; never KeyError, never an empty listing."""
    root.write_bytes(b"")
    with pytest.raises(StorageError):
        VERBS[verb](DirectoryObjectStore(root / "below"), tmp_path / "out")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("put", "create")])
def test_reading_makes_nothing(store, root, tmp_path, verb):
    """Looking into a store that does not exist does not make it."""
    with suppress(KeyError):
        VERBS[verb](store, tmp_path / "out")

    assert not root.exists()


@pytest.mark.parametrize("write", [lambda store: store.put("a", [b"x" * 9000]), lambda s: s.create("b", b"x" * 9000)])
def test_failed_write_leaves_nothing(store, root, write):
    """A write that does not fit leaves no file, and what was there before stays."""
    store.put("a", [b"before"])
    with file_size_limit(4096), pytest.raises(StorageError, match="File too large"):
        write(store)

    assert files(root) == ["a"]
    assert store.read("a") == b"before"


def test_full_disk(store):
    """A download that finds no space is StorageError and names the file and the reason."""
    store.put("a", [b"abc"])
    with pytest.raises(StorageError, match=r"/dev/full: .*No space left on device"):
        store.get("a", Path("/dev/full"))


def test_target_without_a_folder(store, tmp_path):
    """A download to nowhere is StorageError: it is not the object that is missing."""
    store.put("a", [b"abc"])
    with pytest.raises(StorageError):
        store.get("a", tmp_path / "nope" / "out")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_without_hard_links(store, root, monkeypatch, number):
    """Where nothing can be published whole and only once, `create` is ConfigError and leaves no file."""

    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match="lacks conditional writes"):
        store.create("log/a", b"abc")

    assert files(root) == []


def test_one_writer_without_hard_links(root, monkeypatch):
    """With a person's word that nobody else writes, the folder is looked at before each write, and told once."""

    def refuse(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = DirectoryObjectStore(root, single_writer_unsafe=True)
    with capture_logs() as logs:
        won = [store.create("log/1", b"first"), store.create("log/1", b"second"), store.create("log/2", b"third")]

    assert won == [True, False, True]
    assert store.read("log/1") == b"first"
    assert files(root) == ["log/1", "log/2"]
    assert [line["event"] for line in logs] == [UNSAFE]


def test_abandoned_writes_leave_no_folder(store, root):
    """When the only file in a folder was a half-written one, the folder goes with it."""
    (root / "data" / "1").mkdir(parents=True)
    (root / "data" / "1" / ".a.0123456789abcdef.partial").write_bytes(b"a")
    store.abandon("data/1/a")

    assert list(root.iterdir()) == []


def test_other_hidden_files_are_not_ours(store, root):
    """What is hidden but not half-written by this store is neither listed nor abandoned."""
    (root / "data").mkdir(parents=True)
    for name in (".nfs0123", ".a.partial", ".a.0123456789abcdeg.partial"):
        (root / "data" / name).write_bytes(b"")
    store.abandon("data/a")

    assert store.unfinished("") == []
    assert len(files(root)) == 3


def test_movement_is_told(root, tmp_path):
    """Writing and reading tell about every few megabytes that move, so that health follows them."""
    told = []
    store = DirectoryObjectStore(root, moved=lambda: told.append(1))
    store.put("a", [bytes(20 << 20)])
    written = len(told)
    store.get("a", tmp_path / "out")
    copied = len(told) - written
    store.digest("a")

    assert written >= 3
    assert copied == len(told) - written - copied == 20


def test_half_written_files_are_no_objects(store, root):
    """What a killed process left, and what the file system keeps for itself, is not listed."""
    store.put("log/a", [b"abc"])
    (root / "log" / ".b.0123456789abcdef.partial").write_bytes(b"a")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "c").write_bytes(b"")
    (root / "lost+found").mkdir()
    (root / "lost+found" / "d").write_bytes(b"")

    assert store.keys("") == ["log/a"]
    assert store.keys("log/") == ["log/a"]


@pytest.mark.parametrize(
    "key", ["../a", "/etc/hostname", "log/../../a", "..", ".", "", "a//b", "a/", ".a", "a/.b", "lost+found/a", "a\0b"]
)
def test_what_is_no_key(store, tmp_path, key):
    """A key that leads out of the store, or to what a listing would not show, is KeyError and touches nothing."""
    for verb in (
        lambda: store.put(key, [b"abc"]),
        lambda: store.create(key, b"abc"),
        lambda: store.get(key, tmp_path / "out"),
        lambda: store.read(key),
        lambda: store.size(key),
        lambda: store.delete(key),
        lambda: store.digest(key),
        lambda: store.abandon(key),
    ):
        with pytest.raises(KeyError, match="is not a key"):
            verb()

    assert files(tmp_path) == []


@pytest.mark.parametrize("prefix", ["../", "/", "log/../../", "./"])
def test_listing_stays_inside(store, tmp_path, prefix):
    """A prefix that leads out of the store finds nothing."""
    (tmp_path / "outside").write_bytes(b"")
    store.put("log/a", [b"abc"])

    assert store.keys(prefix) == []


def test_empty_folders_go(store, root):
    """Deleting the last object of a folder removes the folder, and never the store itself."""
    for key in ("data/1/a", "data/1/b", "log/a"):
        store.put(key, [b""])
    for key in ("data/1/a", "data/1/b"):
        store.delete(key)

    assert [path.name for path in root.iterdir()] == ["log"]
    store.delete("log/a")
    assert root.is_dir()


def test_folder_deleted_under_a_write(store, root, monkeypatch):
    """A write whose folder is removed for being empty, just after it was made, makes it again."""
    to_delete, fsync = [root / "data"], os.fsync

    def delete_in_between(descriptor):
        fsync(descriptor)
        if (root / "data").exists() and to_delete:
            to_delete.pop().rmdir()

    monkeypatch.setattr(os, "fsync", delete_in_between)
    store.put("data/a", [b"abc"])

    assert to_delete == []
    assert store.read("data/a") == b"abc"


@pytest.mark.parametrize("write", [lambda store: store.put("log/a", [b"abc"]), lambda s: s.create("log/a", b"abc")])
def test_writes_outlive_a_power_cut(store, root, monkeypatch, write):
    """File, its folder and the folders made for it are synced before a write returns."""
    synced, fsync = set(), os.fsync

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(store)

    assert synced == {path.stat().st_ino for path in (root / "log" / "a", root / "log", root, root.parent)}


@pytest.mark.parametrize(
    ("number", "ours"),
    [
        (errno.EACCES, AccessError),
        (errno.EPERM, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EIO, StorageError),
        (errno.ESTALE, StorageError),
        (errno.ENOENT, StorageError),
    ],
)
def test_each_error_is_ours(number, ours):
    """What the operating system reports becomes an error of this job that says what, where and why."""
    with pytest.raises(ours, match=f"put /a: .*{os.strerror(number)}"), folder_errors("put /a"):
        raise OSError(number, os.strerror(number))
