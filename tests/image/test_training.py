"""Training in a container as a person starts it: with a volume, without one, watched, and with what it cannot have."""

import time
import urllib.request

import pytest

from tests.image.engine import docker
from tests.image.small_run import ANY_USER, LOCKED, OFFLINE, SETTINGS, settings


@pytest.fixture(scope="module")
def trained(shared_engine, image):
    """A run that was trained to its end: any user, no network, read-only root, no rights; and its volume."""
    volume = shared_engine.volume()
    flags = (*LOCKED, *ANY_USER, *OFFLINE, "--volume", f"{volume}:/runs")
    container = shared_engine.run(image, "train", flags=flags, GPT_JOB_SET=settings())
    container.wait()
    return container, volume


def test_a_run_on_a_volume_comes_to_its_end(trained):
    """0, and the summary says so."""
    container, _ = trained

    assert (container.state()["ExitCode"], container.summary()["status"]) == (0, "complete")
    assert container.summary()["step"] == SETTINGS["training.max_steps"]


def test_the_run_lies_on_the_volume(trained, image):
    """Its default address is below /runs, so that another container finds the checkpoints there and verifies them."""
    container, volume = trained
    run_uri = container.summary()["run_uri"]
    verify = docker("run", "--rm", "--volume", f"{volume}:/runs", image, "checkpoints", "verify", "--run", run_uri)

    assert run_uri.startswith("runs/quickstart-")
    assert verify.returncode == 0


def test_a_second_start_finds_the_run_complete(trained, engine, image):
    """The same command on the same volume trains nothing again."""
    _, volume = trained
    flags = (*LOCKED, *ANY_USER, "--volume", f"{volume}:/runs")
    again = engine.run(image, "train", flags=flags, GPT_JOB_SET=settings())

    assert again.wait() == 0
    assert again.summary()["status"] == "already complete"


def test_what_it_learned_can_be_generated_from(trained, image):
    """The container that trained is gone; another one continues a prompt from the volume."""
    container, volume = trained
    words = ["generate", "--run", container.summary()["run_uri"], "--prompt", "The ", "--max-new-tokens", "5"]
    said = docker("run", "--rm", *LOCKED, *ANY_USER, *OFFLINE, "--volume", f"{volume}:/runs", image, *words).stdout

    assert said.startswith("The ")


def refused(engine, image, *arguments, flags=(), **changes):
    """Exit code and words of a `train` that has to end with a refusal."""
    container = engine.run(image, "train", *arguments, flags=(*OFFLINE, *flags), GPT_JOB_SET=settings(**changes))
    return container.wait(), container.text()


@pytest.mark.parametrize("flags", [(), ("--tmpfs", "/runs")], ids=["nothing mounted", "memory mounted"])
def test_a_run_that_would_be_lost_is_refused(engine, image, flags):
    """78 with a way out, and not a silent start over the next time."""
    code, said = refused(engine, image, flags=flags)

    assert (code, "-v gpt-runs:/runs" in said) == (78, True)


def test_a_bind_mount_is_a_volume(engine, image, tmp_path):
    """A folder of the host, which may be of the same file system as the container's root, is kept."""
    tmp_path.chmod(0o777)
    flags = (*OFFLINE, "--volume", f"{tmp_path}:/runs")
    container = engine.run(image, "train", flags=flags, GPT_JOB_SET=settings(training__max_steps=2))

    assert container.wait() == 0
    assert list(tmp_path.glob("quickstart-*/log/*.json"))


def test_ephemeral_is_a_persons_word(engine, image):
    """With --ephemeral it trains without a volume."""
    values = settings(training__max_steps=2)
    container = engine.run(image, "train", "--ephemeral", flags=OFFLINE, GPT_JOB_SET=values)

    assert container.wait() == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__n_embd": 33}, "model.n_embd=33 is not a multiple of model.n_head=2"),
        ({"training__max_step": 3}, "training.max_steps"),
        ({"run_uri": "gs://bucket/run"}, "names no store"),
    ],
)
def test_a_wrong_config_ends_with_78(engine, image, changes, expected):
    """What is wrong, named, and the code that a pod failure policy does not repeat."""
    code, said = refused(engine, image, "--ephemeral", **changes)

    assert (code, expected in said) == (78, True)


def test_a_gpu_preset_without_a_gpu_says_how_to_get_one(engine, image):
    """Before anything is pulled, and in the words of a container."""
    container = engine.run(image, "train", "--preset", "gpt2-124m", "--ephemeral", flags=OFFLINE)

    assert container.wait() == 78
    assert "torch finds no GPU" in container.text()
    assert "--gpus all" in container.text() or "TORCH=cuda" in container.text()


def test_gpt2s_tokenizer_and_the_book_need_no_network(engine, image):
    """`verdict` is tokenized from what the image carries."""
    flags = (*LOCKED, *ANY_USER, *OFFLINE)
    container = engine.run(image, "prepare", "--preset", "verdict", "--json", flags=flags)

    assert container.wait() == 0
    assert container.logs()[-1]["splits"]["train"]["tokens"] > 4000


def test_a_run_can_be_watched_from_outside(engine, image):
    """Metrics, health and readiness on a published port; the engine sees it healthy by itself."""
    flags = ("--publish", "127.0.0.1::9108", "--health-interval", "1s")
    values = settings(training__max_steps=100_000)
    container = engine.run(image, "train", "--ephemeral", flags=flags, GPT_JOB_SET=values)
    container.until("evaluated", step=200)
    base = f"http://127.0.0.1:{container.port(9108)}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    paths = ["/metrics", "/healthz", "/readyz"]
    answers = {path: direct.open(base + path, timeout=10).read().decode() for path in paths}

    step = next(line for line in answers["/metrics"].splitlines() if line.startswith("pretrain_step "))
    assert float(step.split()[1]) >= 200
    assert (answers["/healthz"], answers["/readyz"]) == ("ok\n", "ok\n")
    for _ in range(100):
        if container.state()["Health"]["Status"] == "healthy":
            break
        time.sleep(0.2)
    assert container.state()["Health"]["Status"] == "healthy"
    assert container.state()["Health"]["Log"][-1]["Output"] == "ok\n"
