"""`gpt-job prepare` by several machines with one bucket: what one has made the others take, and nothing is mixed."""

import json
from dataclasses import dataclass

import pytest

from tests.integration.command import World, assignments, files, two_at_a_time
from tests.s3_server import S3Server
from tests.unit.test_data_published import WIDTHS, shard

PATH_STYLE = "storage.addressing_style=path"


@dataclass(frozen=True)
class Bucket:
    """A prefix of a real bucket, and machines that share it."""

    server: S3Server
    uri: str

    @property
    def prefix(self):
        return self.uri.removeprefix(f"s3://{self.server.bucket}/") + "/"

    def objects(self):
        client, bucket = self.server.client(), self.server.bucket
        found = client.list_objects_v2(Bucket=bucket, Prefix=self.prefix).get("Contents", [])
        return {
            entry["Key"].removeprefix(self.prefix): client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            for entry in found
        }

    def put(self, name, content):
        place = {"Bucket": self.server.bucket, "Key": self.prefix + name}
        if content is None:
            self.server.client().delete_object(**place)
        else:
            self.server.client().put_object(**place, Body=content)

    def prepare(self, folder, *settings):
        """The command on a machine of its own."""
        settings = (PATH_STYLE, f"data.cache_uri={self.uri}", *settings)
        world = World.create(folder, self.server.environ)
        return world, world.gpt_job("prepare", "--json", *assignments(*settings))


@pytest.fixture
def bucket(s3_server):
    return Bucket(s3_server, s3_server.fresh_uri())


def tokens(world):
    """The token files of a machine, by name."""
    (folder,) = (world.folder / "cache" / "tokens").iterdir()
    return files(folder)


def shards(world):
    """Without what was measured while they were made."""
    return {name: content for name, content in tokens(world).items() if name.endswith(".bin")}


def test_the_second_machine_only_downloads(bucket, tmp_path):
    """It makes no tokens, has the same files and tells the same of them, and uploads nothing."""
    first, made = bucket.prepare(tmp_path / "1")
    shared = bucket.objects()
    second, taken = bucket.prepare(tmp_path / "2")

    assert [made.code, taken.code] == [0, 0]
    assert (len(made.events("tokenized")), len(taken.events("tokenized"))) == (1, 0)
    assert len(taken.events("token files taken from the shared cache")) == 1
    assert tokens(second) == tokens(first)
    assert taken.summary == made.summary
    assert bucket.objects() == shared


def test_two_machines_that_start_together_do_not_mix(bucket, tmp_path):
    """One of them is listed, its files whole; of the other's nothing stays; both have the same, and so has a third."""
    started = two_at_a_time(lambda name: bucket.prepare(tmp_path / name), {name: name for name in "12"})
    listed = json.loads(next(content for name, content in bucket.objects().items() if name.endswith("files.json")))
    third, taken = bucket.prepare(tmp_path / "3")

    assert {ending.code for _, ending in started.values()} == {0}
    assert {name.split("/")[2] for name in bucket.objects()} == {"files.json", listed["folder"]}
    assert shards(third) == shards(started["1"][0]) == shards(started["2"][0])
    assert tokens(third) in [tokens(world) for world, _ in started.values()]
    assert taken.events("tokenized") == []


DAMAGES = {
    "a bit": ("train_000000.bin", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "gone": ("validation_000000.bin", lambda content: None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_objects_are_noticed(bucket, tmp_path, damage):
    """What does not have its hash is not used: made here, with a warning, and whole in the bucket for the next."""
    name, spoil = DAMAGES[damage]
    first, _ = bucket.prepare(tmp_path / "1")
    key, content = next((key, content) for key, content in bucket.objects().items() if key.endswith(name))
    bucket.put(key, spoil(content))
    second, made = bucket.prepare(tmp_path / "2")
    third, taken = bucket.prepare(tmp_path / "3")

    assert (made.code, len(made.events("tokenized"))) == (0, 1)
    assert any("damaged" in line["event"] for line in made.log)
    assert tokens(second)["train_000000.bin"] == tokens(third)["train_000000.bin"] == tokens(first)["train_000000.bin"]
    assert taken.events("tokenized") == []


def test_a_cache_that_is_refused(bucket, tmp_path):
    """A wrong key is 77, not a reason to make tokens that nobody else gets."""
    world = World.create(tmp_path, bucket.server.environ | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    ending = world.gpt_job("prepare", *assignments(PATH_STYLE, f"data.cache_uri={bucket.uri}"))

    assert ending.codes == {77}
    assert not list((world.folder / "cache").glob("tokens/[!.]*"))


@pytest.mark.parametrize("width", WIDTHS)
def test_published_shards_in_a_bucket(bucket, tmp_path, width):
    """Shards below a prefix are read as they are, of either width, and not put into the shared cache again."""
    for name, content in (("train_1", [1, 2] * 40), ("train_2", [3] * 80), ("val_1", [5, 6] * 70)):
        bucket.put(f"web/{name}.bin", shard(content, width))
    before = bucket.objects()
    _, ending = bucket.prepare(tmp_path, f"data.corpus={bucket.uri}/web", "data.split=[0.9, 0.1]")

    assert {name: counts["tokens"] for name, counts in ending.summary["splits"].items()} == {
        "train": 160,
        "validation": 140,
        "test": 0,
    }
    assert bucket.objects() == before


@pytest.mark.parametrize(
    ("second", "third", "code", "named"),
    [
        (shard([1] * 80)[:-2], shard([1] * 80), 65, "train_2.bin: 1182 bytes, but 80 tokens of 2 bytes were announced"),
        (None, shard([1] * 80), 66, "but no {prefix}web/train_2.bin"),
    ],
    ids=["short", "missing"],
)
def test_bad_shards_in_a_bucket(bucket, tmp_path, second, third, code, named):
    """A short shard is 65, one that lacks between two others 66; both are named."""
    for number, content in ((1, third), (2, second), (3, third)):
        if content:
            bucket.put(f"web/train_{number}.bin", content)
    bucket.put("web/val_1.bin", third)
    _, ending = bucket.prepare(tmp_path, f"data.corpus={bucket.uri}/web", "data.split=[0.9, 0.1]")

    assert ending.codes == {code}, ending.stderr
    assert bucket.uri in ending.reason
    assert named.format(prefix=bucket.prefix) in ending.reason
