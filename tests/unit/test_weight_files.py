"""From a name or an address to the files of a model: folders, servers, mirrors, what is refused."""

import pytest

from job.data import download, weight_files
from job.data.weight_files import find_weight_files, released_size
from job.errors import ConfigError, DataError, NotFoundError, StorageError
from tests.memory_store import MemoryObjectStore
from tests.tensorflow.bundle import write_bundle
from tests.tensorflow.numbers import HPARAMS, variables
from tests.unit.data_support import Plan, config_for, no_store, serving, still
from tests.unit.weights_support import hugging_tensors, model, write_huggingface


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Nobody waits between attempts."""
    monkeypatch.setattr(download, "BACKOFF", 0.0)


def find(tmp_path, uri, store=no_store, **settings):
    return find_weight_files(str(uri), config_for(tmp_path, "unused.txt", **settings), store, still)


def offer(server, folder, base):
    """Serve a folder's files below `base`."""
    for path in folder.iterdir():
        server.plans[f"{base}/{path.name}"] = Plan(path.read_bytes())


def contents(found):
    return {name: path.read_bytes() for name, path in found.files.items()}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gpt2:124M", "124M"),
        ("gpt2:355m", "355M"),
        ("gpt2", "124M"),
        ("gpt2-small (124M)", "124M"),
        ("gpt2-small", "124M"),
        ("gpt2-medium", "355M"),
        ("GPT-2 large", "774M"),
        ("gpt2-large (774M)", "774M"),
        ("gpt2-xl", "1558M"),
        ("gpt2-xl (1558M)", "1558M"),
        ("gpt2:1542M", "1558M"),
        ("openai-community/gpt2-xl", "1558M"),
        ("my-gpt2", None),
        ("folder/gpt2", None),
        ("https://host/gpt2", None),
        ("s3://bucket/gpt2", None),
    ],
)
def test_names_people_type(name, size):
    """Each of GPT-2's usual names means one of the four sizes, and no address does."""
    assert released_size(name) == size


@pytest.mark.parametrize("name", ["gpt2:7B", "gpt2-huge", "gpt2-medium (124M)"])
def test_names_of_no_size(name):
    """A name of GPT-2 with an unknown size, or two, is refused with those there are."""
    with pytest.raises(ConfigError, match="gpt2:1558M"):
        released_size(name)


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    """gpt2 is the folder gpt2 where there is one."""
    write_huggingface(tmp_path / "gpt2", model())
    monkeypatch.chdir(tmp_path)

    assert set(find(tmp_path, "gpt2").files) == {"config.json", "model.safetensors"}


def test_a_file_stands_for_its_folder(tmp_path):
    """The address of a weights file means the folder with all that belongs to it."""
    folder = write_huggingface(tmp_path / "one", model())

    assert set(find(tmp_path, folder / "model.safetensors").files) == {"config.json", "model.safetensors"}


def test_no_folder(tmp_path):
    """What is not there is not found."""
    with pytest.raises(NotFoundError):
        find(tmp_path, tmp_path / "nowhere")


def test_other_schemes(tmp_path):
    """An address of another kind is refused with those that are known."""
    with pytest.raises(ConfigError, match=r"ftp://host/x: weights are gpt2:SIZE"):
        find(tmp_path, "ftp://user@host/x")


@pytest.mark.parametrize("end", ["", "/", "/model.ckpt.index"])
def test_openai_over_http(tmp_path, server, end):
    """A web address in OpenAI's layout is brought whole: checkpoint, sizes and tokenizer."""
    folder = write_bundle(tmp_path / "there", variables(), HPARAMS)
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_text("{}")
    offer(server, folder, "/models/124M")

    assert contents(find(tmp_path, server.url("/models/124M") + end)) == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


@pytest.mark.parametrize("sharded", [False, True])
def test_huggingface_over_http(tmp_path, server, sharded):
    """A web address in Hugging Face's layout is brought whole, in one file or as many as its index names."""
    ours = model()
    files = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(hugging_tensors(ours))} if sharded else None
    folder = write_huggingface(tmp_path / "there", ours, files=files)
    (folder / "tokenizer.json").write_text("{}")
    offer(server, folder, "/gpt2/resolve/main")

    assert contents(find(tmp_path, server.url("/gpt2/resolve/main"))) == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_query_goes_with_every_request(tmp_path, server):
    """What a presigned address ends in is sent for each file, and is not shown."""
    offer(server, write_huggingface(tmp_path / "there", model()), "/x")
    found = find(tmp_path, server.url("/x?signature=secret"))

    assert all(path.endswith("?signature=secret") for path, _ in server.requests)
    assert "secret" not in found.uri


def test_an_index_does_not_lead_elsewhere(tmp_path, server):
    """A served index that names a file of another folder is refused."""
    server.plans["/x/config.json"] = Plan(b"{}")
    server.plans["/x/model.safetensors.index.json"] = Plan(b'{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(DataError, match="secret"):
        find(tmp_path, server.url("/x"))


def test_interrupted_downloads_go_on(tmp_path, server):
    """A connection that breaks within a file is continued from there."""
    folder = write_huggingface(tmp_path / "there", model(n_layer=4, n_embd=64))
    offer(server, folder, "/x")
    server.plans["/x/model.safetensors"].cut_after = [100_000]
    found = find(tmp_path, server.url("/x"))

    assert found.files["model.safetensors"].read_bytes() == (folder / "model.safetensors").read_bytes()
    assert any(headers.get("Range") == "bytes=100000-" for _, headers in server.requests)


def test_what_was_brought_is_used_again(tmp_path, server):
    """The second time nothing is sent again, and without the server the cached files do."""
    offer(server, write_huggingface(tmp_path / "there", model()), "/x")
    first = find(tmp_path, server.url("/x"))
    for plan in server.plans.values():
        plan.fail = [503] * 20

    assert contents(find(tmp_path, server.url("/x"))) == contents(first)


@pytest.fixture
def small_sizes(monkeypatch):
    """Sizes of files that a test can afford."""
    monkeypatch.setitem(weight_files.KNOWN_BYTES, "124M", {"model.ckpt.index": 1322})
    monkeypatch.setattr(weight_files, "_ENCODING", {"encoder.json": 2, "vocab.bpe": 2})


def offer_released(server, folder, base):
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_text("{}")
    offer(server, folder, base)


def test_a_mirror_stands_in(tmp_path, server, small_sizes):
    """When the first host lacks a model, or has a file of another size, the next one is asked."""
    folder = write_bundle(tmp_path / "there", variables(), HPARAMS)
    size = (folder / "model.ckpt.index").stat().st_size
    weight_files.KNOWN_BYTES["124M"]["model.ckpt.index"] = size
    offer_released(server, folder, "/good/124M")
    offer(server, folder, "/short/124M")
    server.plans["/short/124M/model.ckpt.index"] = Plan(b"x" * (size - 1))
    hosts = tuple(server.url(f"/{name}/{{size}}") for name in ("gone", "short", "good"))
    found = find(tmp_path, "gpt2:124M", weights_hosts=hosts)

    assert found.uri == server.url("/good/124M")
    assert contents(found) == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_longer_file_than_the_published(tmp_path, server, small_sizes):
    """A file that grows beyond its known size is not taken in, and the error says so for each host."""
    folder = write_bundle(tmp_path / "there", variables(), HPARAMS)
    offer_released(server, folder, "/one/124M")
    server.plans["/one/124M/model.ckpt.index"] = Plan(b"x" * 1400)
    with pytest.raises(DataError, match=r"gpt2:124M is on none of data.weights_hosts:\n.*1400 bytes"):
        find(tmp_path, "gpt2:124M", weights_hosts=(server.url("/one/{size}"),))


def test_on_no_host(tmp_path, server):
    """Where no host has it, each reason is given, and what to do."""
    hosts = (server.url("/a/{size}"), server.url("/b/{name}"))
    with pytest.raises(NotFoundError, match=r"(?s)/a/355M.*/b/gpt2-medium.*name their folder"):
        find(tmp_path, "gpt2-medium", weights_hosts=hosts)


def test_a_bucket(tmp_path):
    """Objects below an address are brought; those of no use are listed only."""
    store = MemoryObjectStore()
    folder = write_huggingface(tmp_path / "there", model())
    for path in folder.iterdir():
        store.put(path.name, [path.read_bytes()])
    store.put("pytorch_model.bin", [b"pickle"])
    store.put("below/config.json", [b"{}"])
    found = find(tmp_path, "s3://bucket/gpt2", lambda uri: store)

    assert found.files["model.safetensors"].read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not found.files["pytorch_model.bin"].exists()
    assert "below/config.json" not in found.files


def test_an_empty_bucket(tmp_path):
    """Nothing below an address is not found."""
    with pytest.raises(NotFoundError):
        find(tmp_path, "s3://bucket/gpt2", lambda uri: MemoryObjectStore())


def test_a_server_that_does_not_answer(tmp_path, server):
    """A host that fails and keeps failing is storage that cannot be reached, not weights that are not there."""
    server.plans["/x/hparams.json"] = Plan(fail=[503] * 20)
    with pytest.raises(StorageError):
        find(tmp_path, server.url("/x"))
