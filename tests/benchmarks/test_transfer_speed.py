"""How fast bytes move, beside the best that plain tools do with the same bytes in the same minutes."""

import hashlib
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from boto3.s3.transfer import TransferConfig

from job.config import StorageConfig
from job.infra.buffers import Joined
from job.infra.directory_store import DirectoryObjectStore
from job.infra.s3 import S3ObjectStore
from job.infra.s3_connection import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MiB = 1 << 20
SIZE = int(os.environ.get("BENCH_BYTES", "1950000000"))  # a checkpoint of 163M parameters with AdamW
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
TRIAL = SIZE // 8  # bytes on which TransferManager's best settings are looked for
PARTS = (8 * MiB, 16 * MiB, 32 * MiB, 64 * MiB)
THREADS = (2, 4, 10)


@pytest.fixture(scope="module")
def content():
    """A checkpoint's bytes, in pieces as a serializer gives them."""
    block = memoryview(random.Random(0).randbytes(64 * MiB))
    pieces = [block[number:] for number in range(SIZE // len(block))]
    return [*pieces, block[: SIZE - sum(len(piece) for piece in pieces)]]


@dataclass
class Spent:
    """What an action took, once for every round."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of this process, all threads

    def measure(self, action: Callable[[], object]) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        action()
        self.seconds.append(time.perf_counter() - started)
        self.cpu.append(time.process_time() - cpu)


def trial_seconds(action: Callable[[], object]) -> float:
    """The better of two tries."""
    spent = Spent()
    for _ in range(2):
        spent.measure(action)
    return min(spent.seconds)


def interleaved(actions: dict[str, Callable[[], object]]) -> dict[str, Spent]:
    """What each action took, the actions taking turns, in an order that changes from round to round."""
    spent = {name: Spent() for name in actions}
    for number in range(ROUNDS + 1):
        for name in list(actions)[:: 1 if number % 2 else -1]:
            (spent[name] if number else Spent()).measure(actions[name])  # the first round warms caches and connections
    return spent


def table(title: str, spent: dict[str, Spent]) -> dict[str, float]:
    """Print medians and ratios to the first row; returns the medians."""
    medians = {name: statistics.median(each.seconds) for name, each in spent.items()}
    first = next(iter(medians.values()))
    load = os.getloadavg()[0]
    print(f"\n{title}: {SIZE / 1e9:.2f} GB, median of {ROUNDS} rounds, {os.cpu_count()} cores, load {load:.1f}")
    for name, each in spent.items():
        median, cpu = medians[name], statistics.median(each.cpu)
        times = f"{median:6.2f} s ({min(each.seconds):5.2f} to {max(each.seconds):5.2f}), CPU {cpu:5.2f} s"
        print(f"  {name:44} {times}  {SIZE / median / 1e6:6.0f} MB/s  {median / first:5.2f} x")
    return medians


def test_a_folder_takes_a_checkpoint_as_fast_as_a_plain_write(content, tmp_path):
    """`put` of 1.95 GB, hashed and durable, takes at most 1.3 times a plain write with fsync, if nothing else runs."""
    store = DirectoryObjectStore(tmp_path / "store")

    def plain():
        with (tmp_path / "plain").open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        (tmp_path / "plain").unlink()

    def ours():
        store.put("checkpoint", content)
        store.delete("checkpoint")

    def hashing():
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)

    spent = interleaved({"plain write and fsync": plain, "put (hashed, durable)": ours, "SHA-256 alone": hashing})
    medians = table("local folder", spent)
    alone = spent["SHA-256 alone"]
    if statistics.median(alone.seconds) > 1.1 * statistics.median(alone.cpu):
        pytest.skip("other work shares the cores: hashing alone waits for one, so the ratio says nothing")

    assert medians["put (hashed, durable)"] <= 1.3 * medians["plain write and fsync"]


def test_s3_is_nearly_as_fast_as_transfer_manager(content, s3_environment, tmp_path):
    """Upload and download of a checkpoint, hashed, reach 80 % of what boto3's TransferManager does at its best."""
    config = StorageConfig(addressing_style="path")
    plain, (bucket, prefix) = s3_environment.client(), s3_environment.fresh_uri().removeprefix("s3://").split("/")
    store = S3ObjectStore(connect(config), bucket, prefix, config)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"".join(content))
    trial = tmp_path / "trial"
    trial.write_bytes(Joined(content).part(0, TRIAL).read())

    def settings(part: int, threads: int) -> TransferConfig:
        return TransferConfig(
            multipart_threshold=part,
            multipart_chunksize=part,
            max_concurrency=threads,
            preferred_transfer_client="classic",
        )

    def best(action: Callable[[TransferConfig], object]) -> TransferConfig:
        choices = [settings(part, threads) for part, threads in itertools.product(PARTS, THREADS)]
        return min(choices, key=lambda choice: trial_seconds(lambda: action(choice)))

    def named(name: str, choice: TransferConfig) -> str:
        return f"TransferManager {name}, {choice.multipart_chunksize // MiB} MiB x {choice.max_request_concurrency}"

    up = best(lambda choice: plain.upload_file(str(trial), bucket, f"{prefix}/trial", Config=choice))
    down = best(lambda choice: plain.download_file(bucket, f"{prefix}/trial", str(target), Config=choice))
    ups = table(
        "S3 upload",
        interleaved(
            {
                named("upload_file", up): lambda: plain.upload_file(str(source), bucket, f"{prefix}/plain", Config=up),
                "put (hashed)": lambda: store.put("ours", content),
            }
        ),
    )
    downs = table(
        "S3 download",
        interleaved(
            {
                named("download_file", down): lambda: plain.download_file(
                    bucket, f"{prefix}/plain", str(target), Config=down
                ),
                "get (hashed)": lambda: store.get("ours", target),
                "digest (nothing kept)": lambda: store.digest("ours"),
            }
        ),
    )
    store.delete("ours")
    plain.delete_object(Bucket=bucket, Key=f"{prefix}/plain")

    for reference, ours, *_ in (list(ups.values()), list(downs.values())):
        assert ours <= reference / 0.8
