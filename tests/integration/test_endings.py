"""How a run ends: each exit code in a real process, said alike everywhere, and what the next start makes of it."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from job.infra.signals import ECHO_SECONDS
from tests.integration.command import REAL, SLOW, SUMMARY, Ending, World, files, get


def test_a_complete_run_ends_with_0(finished):
    """The last step reached, the process ends with 0 and says `complete` everywhere."""
    assert finished.ending.codes == {0}
    assert finished.ending.reason == finished.ending.summary["status"] == "complete"


def test_the_summary_says_where_the_run_stands(finished):
    """The last line on stdout is one JSON object: status, step, losses, tokens, seconds, address and chain."""
    summary, last = finished.ending.summary, finished.world.records()[-1]

    assert summary.keys() == SUMMARY
    assert (summary["step"], summary["tokens"], summary["run_uri"]) == (40, 40 * 4 * 64, "run")
    assert summary["chain"] == last["chain"]
    assert (summary["train_loss"], summary["val_loss"]) == (last["train_loss"], last["val_loss"])
    assert (finished.world.folder / summary["checkpoint"] / "model.safetensors").exists()


@pytest.fixture(scope="module")
def again(finished, tmp_path_factory):
    """A complete run started once more: the run before, the run after, the ending."""
    world = finished.world.copy(tmp_path_factory.mktemp("again"))
    before = files(world.run)
    return before, world.train(), files(world.run)


def test_a_complete_run_is_left_as_it_is(again):
    """The second call writes nothing at all under the run's address."""
    before, _, after = again

    assert after == before


def test_a_complete_run_says_so(again, finished):
    """The second call ends with 0, `already complete`, and the first one's summary."""
    _, ending, _ = again

    assert ending.codes == {0}
    assert ending.reason == "already complete"
    assert ending.summary == {**finished.ending.summary, "status": "already complete"}


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped by SIGTERM, then by SIGINT, and then let be."""

    world: World
    endings: list[Ending]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Stopped:
    """One run in three attempts."""
    world, endings = World.create(tmp_path_factory.mktemp("stopped")), []
    for number, step in ((signal.SIGTERM, 7), (signal.SIGINT, 17)):
        with world.training(*SLOW, launcher=REAL) as job:
            job.until("sampled", step=step)
            job.process.send_signal(number)
            endings.append(job.ending())
    return Stopped(world, [*endings, world.train(*SLOW)])


@pytest.mark.parametrize("attempt", [0, 1], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_with_75(stopped, attempt):
    """Asked to stop, the run ends with 75 and `interrupted`."""
    assert stopped.endings[attempt].codes == {75}
    assert stopped.endings[attempt].summary["status"] == "interrupted"


@pytest.mark.parametrize("attempt", [0, 1], ids=["SIGTERM", "SIGINT"])
def test_a_stopped_run_says_what_is_saved(stopped, attempt):
    """The message names the signal, the last saved step and how many are to be redone."""
    ending = stopped.endings[attempt]
    step = ending.summary["step"]

    assert ending.reason == (
        f"Interrupted: {('SIGTERM', 'SIGINT')[attempt]} received: stopped after step {step}; step {step} is saved, "
        "0 steps are to be redone; start again to continue"
    )


def test_a_stopped_run_continues_to_the_same_end(stopped, finished):
    """The next call completes the run: 0, and the chain of steps of a run that nobody stopped."""
    assert stopped.endings[-1].codes == {0}
    assert stopped.endings[-1].summary["chain"] == finished.ending.summary["chain"]


class _SlowHost(BaseHTTPRequestHandler):
    """Promises a megabyte, and sends a byte now and then or none at all."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 20))
        self.end_headers()
        self.server.asked.set()
        while not self.server.closing.wait(self.server.pause):
            self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@contextmanager
def slow_corpus(pause: float) -> Iterator[tuple[str, threading.Event]]:
    """A corpus that comes with a pause after each byte, in seconds, and what tells that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SlowHost)
    server.asked, server.closing, server.pause = threading.Event(), threading.Event(), pause
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"data.corpus=http://127.0.0.1:{server.server_address[1]}/corpus.txt", server.asked
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def test_a_signal_stops_a_download(world):
    """While the corpus is pulled the endpoint says so, and SIGTERM ends the process with 75."""
    with slow_corpus(0.05) as (corpus, asked), world.training(corpus, "observe.metrics_port=0", launcher=REAL) as job:
        url = job.until("metrics endpoint")["url"]
        assert asked.wait(timeout=60)
        phase, ready = get(url), get(url.replace("/metrics", "/readyz"))
        job.process.terminate()
        ending = job.ending()

    assert 'pretrain_phase{phase="pulling"} 1.0' in phase[1]
    assert ready == (503, "training has not begun\n")
    assert ending.codes == {75}
    assert not (world.run / "log").exists()


def test_a_second_signal_leaves_at_once(world):
    """The second SIGTERM ends a process that cannot get to the first one: it waits for a silent host."""
    with slow_corpus(3600.0) as (corpus, asked), world.training(corpus, launcher=REAL) as job:
        assert asked.wait(timeout=60)
        job.process.terminate()
        job.until("stopping at the next step boundary and saving; once more leaves at once")
        time.sleep(2 * ECHO_SECONDS)  # sooner, it would be taken for an echo of the first
        job.process.terminate()
        ending = job.ending()

    assert ending.codes == {75}
    assert "SIGTERM received, then SIGTERM; left at step 0; nothing was saved" in ending.reason
    assert ending.summary["status"] == "interrupted"


def test_divergence_ends_with_70(world):
    """A learning rate beyond all bounds: skipped steps and rollbacks are counted, and the run ends with 70."""
    ending = world.train("optimizer.learning_rate=1e30", "optimizer.clip_norm=none", "training.max_nonfinite_steps=2")

    assert ending.codes == {70}
    assert "not finite for 2 steps in a row" in ending.reason
    assert "after 3 rollbacks (training.max_rollbacks)" in ending.reason
    assert "pretrain_nonfinite_steps_total 8.0" in world.metrics()
    assert "pretrain_rollbacks_total 3.0" in world.metrics()


@pytest.fixture(scope="module")
def fenced(tmp_path_factory):
    """A run that is paused, taken over by a second process, and woken: world, both endings."""
    world = World.create(tmp_path_factory.mktemp("fenced"))
    with world.training("training.max_steps=100000") as first:
        first.until("checkpoint saved")
        first.process.send_signal(signal.SIGSTOP)
        with world.training(*SLOW, f"training.max_steps={world.saved()[-1] + 30}") as second:
            second.until("sampled")
            first.process.send_signal(signal.SIGCONT)
            return world, first.ending(), second.ending()


def test_the_older_of_two_processes_ends_with_73(fenced):
    """Whoever was taken over ends with 73 at its next save and names the owner."""
    world, first, _ = fenced
    owner = world.records()[-1]["attempt"]

    assert first.codes == {73}
    assert f"attempt {owner} owns this run" in first.reason


def test_the_newer_of_two_processes_completes(fenced):
    """Whoever took over ends with 0."""
    _, _, second = fenced

    assert second.codes == {0}


def test_two_processes_leave_one_line(fenced):
    """The log is dense, each checkpoint follows the one before, and after the second fence all records are its own."""
    world, _, _ = fenced
    records = world.records()
    saves = [record for record in records if record["kind"] == "checkpoint"]
    second = next(record for record in records if record["kind"] == "fence" and record["seq"] > 1)

    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert [save["prev_checkpoint_seq"] for save in saves] == [None, *(save["seq"] for save in saves[:-1])]
    assert {record["attempt"] for record in records[second["seq"] - 1 :]} == {second["attempt"]}
