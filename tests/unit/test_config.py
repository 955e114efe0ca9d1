"""Settings: values that cannot be wrong, from layers that say where each came from."""

import tomllib
from dataclasses import fields

import pytest

from job.config import SECTIONS, CheckpointConfig, ModelConfig, TrainingConfig, identity, plain
from job.config_file import _TYPES, CALLED_HERE, load_config, preset_names, render_toml, stored_config
from job.errors import ConfigError


def problems(**layers):
    with pytest.raises(ConfigError) as raised:
        load_config(**layers)
    return raised.value.problems


def test_heads_must_divide_the_width():
    """The error names both settings with their values."""
    with pytest.raises(ConfigError, match=r"model\.n_embd=770 is not a multiple of model\.n_head=12"):
        ModelConfig(n_embd=770)


def test_a_head_size_of_its_own_frees_the_width():
    """With head_size the width need not divide by the heads."""
    assert ModelConfig(n_embd=512, n_head=6, head_size=85).head_width == 85


def test_one_checkpoint_is_not_enough():
    """Retention keeps at least two."""
    with pytest.raises(ConfigError, match="keep_last=1 must be at least 2"):
        CheckpointConfig(keep_last=1)


def test_a_run_must_end():
    """Training without any end is refused."""
    with pytest.raises(ConfigError, match="training has no end"):
        TrainingConfig()


def test_a_falling_schedule_needs_an_end_in_steps():
    """A cosine over an unknown number of steps is refused."""
    found = problems(overrides=["training.max_steps=none", "training.max_seconds=60"])

    assert found == ("optimizer.schedule='cosine' needs an end in steps: set training.max_steps or training.epochs",)


def test_all_problems_are_reported_at_once(tmp_path):
    """Unknown keys, wrong types and wrong values of every layer come in one error."""
    path = tmp_path / "run.toml"
    path.write_text("[model]\nn_layer = 'two'\n[training]\nbatch_size = 0\n")
    found = problems(path=path, overrides=["model.d_model=3", "seed=-1x"], environ={"GPT_JOB_SET": "training.evry=1"})

    assert len(found) == 5


@pytest.mark.parametrize(("word", "here"), sorted(CALLED_HERE.items()))
def test_other_projects_words_are_answered(word, here):
    """What the tutorials and nanoGPT call a setting is answered with its name here, which exists."""
    (found,) = problems(overrides=[f"model.{word}=1"])

    assert found == f"unknown setting model.{word} (--set): {word} is called {here} here"
    assert here in _TYPES


def test_the_nearest_key_is_suggested():
    """A misspelt key is answered with the one that was meant."""
    assert problems(overrides=["training.eval_evry=5"]) == (
        "unknown setting training.eval_evry (--set): did you mean training.eval_every?",
    )


def test_a_key_without_its_section_is_placed():
    """A known name without its section is answered with the whole name."""
    assert problems(overrides=["n_layer=5"]) == ("unknown setting n_layer (--set): did you mean model.n_layer?",)


def test_later_layers_win(tmp_path):
    """Preset, file, environment, --set: each overrides the one before and is named as the source."""
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n[model]\nn_layer = 1\nn_head = 1\n[training]\nmax_steps = 1\n")
    environ = {"GPT_JOB_SET": "model.n_layer=2\nmodel.n_head=2\n"}
    resolved = load_config("verdict", path, ["model.n_layer=3"], environ)
    names = ["model.n_embd", "seed", "model.n_head", "model.n_layer"]

    assert (resolved.config.seed, resolved.config.model.n_head, resolved.config.model.n_layer) == (1, 2, 3)
    assert [resolved.sources[name] for name in names] == ["preset verdict", f"file {path}", "environment", "--set"]


def test_preset_and_file_come_from_the_environment(tmp_path):
    """GPT_JOB_PRESET and GPT_JOB_CONFIG stand in for the flags."""
    path = tmp_path / "run.toml"
    path.write_text("seed = 77\n")
    resolved = load_config(environ={"GPT_JOB_PRESET": "baby-cpu", "GPT_JOB_CONFIG": str(path)})

    assert (resolved.preset, resolved.config.seed) == ("baby-cpu", 77)


@pytest.mark.parametrize(
    ("assignment", "section", "name", "value"),
    [
        ("training.max_steps=1e3", "training", "max_steps", 1000),
        ("training.eval_every=epoch", "training", "eval_every", "epoch"),
        ("training.micro_batch_size=none", "training", "micro_batch_size", None),
        ("optimizer.clip_norm=1", "optimizer", "clip_norm", 1.0),
        ("data.corpus=my.txt", "data", "corpus", ("my.txt",)),
        ("data.corpus=2024", "data", "corpus", ("2024",)),
        ('data.corpus=["a.txt", "b.txt"]', "data", "corpus", ("a.txt", "b.txt")),
        ("data.corpus=https://host/a.txt#sha256=00", "data", "corpus", ("https://host/a.txt#sha256=00",)),
        ("data.split=[0.5, 0.5]", "data", "split", (0.5, 0.5)),
        ("model.bias=false", "model", "bias", False),
    ],
)
def test_assignments_are_read_as_their_type(assignment, section, name, value):
    """A value on the command line is TOML, or plain text where text is wanted."""
    config = load_config(overrides=[assignment]).config

    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    "assignment",
    ["model.n_layer=1.5", "model.bias=1", "model.init=xavier", "training.max_steps=inf", "seed=true", "noequals"],
)
def test_values_of_another_type_are_refused(assignment):
    """A number is not a flag, and a fraction is no count."""
    assert len(problems(overrides=[assignment])) == 1


def test_a_missing_file_is_named(tmp_path):
    """A config file that is not there is one clear problem."""
    assert problems(path=tmp_path / "none.toml") == (
        f"config file {tmp_path / 'none.toml'}: No such file or directory",
    )


def test_an_unknown_preset_is_answered_with_the_nearest():
    """A misspelt preset names the one that was meant and lists them all."""
    (found,) = problems(preset="quickstrat")

    assert "did you mean quickstart?" in found
    assert all(name in found for name in preset_names())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_reads_back(preset):
    """Each preset resolves, and `config show` prints TOML that gives the same config again."""
    resolved = load_config(preset)
    shown = tomllib.loads(render_toml(resolved))
    flat = [f"{section}.{key}" for section, table in shown.items() if isinstance(table, dict) for key in table]

    assert stored_config(shown) == resolved.config
    assert sorted([*flat, "run_uri", "seed"]) == sorted(_TYPES)


def test_the_presets_that_are_promised_exist():
    """The names of the documentation are there."""
    assert {"quickstart", "baby-cpu", "baby-gpu", "verdict", "fineweb-124m"} <= set(preset_names())
    assert {f"gpt2-{size}" for size in ("124m", "355m", "774m", "1558m")} <= set(preset_names())


def test_a_record_gives_the_config_back():
    """The plain form of a config, as records hold it, reads back as the same config."""
    config = load_config("verdict", overrides=["checkpoint.keep_every=5"]).config

    assert stored_config(plain(config)) == config


def test_identity_settings_make_a_run_of_its_own():
    """Another model, corpus, seed or batch size gets another address; another length does not."""
    address = load_config().config.run_uri
    others = ["model.n_layer=6", "data.corpus=my.txt", "seed=5", "training.batch_size=8"]
    same = ["training.max_steps=9", "optimizer.learning_rate=0.1", "training.micro_batch_size=2", "runtime.threads=1"]

    assert address not in {load_config(overrides=[other]).config.run_uri for other in others}
    assert {address} == {load_config(overrides=[setting]).config.run_uri for setting in same}


def test_an_implied_stride_is_the_same_run_as_a_written_one():
    """Leaving the stride open and writing its value are one identity."""
    written = load_config(overrides=["data.stride=64"]).config

    assert identity(written) == identity(load_config().config)


def test_a_presigned_address_is_neither_stored_nor_an_identity():
    """What may be a signature in a corpus's address is not shown, not stored, and names no other run."""
    first, second = (
        load_config(overrides=[f"data.corpus=https://host/a.txt?X-Amz-Signature={name}#sha256={'0' * 64}"]).config
        for name in ("one", "two")
    )

    assert plain(first)["data"]["corpus"] == [f"https://host/a.txt#sha256={'0' * 64}"]
    assert first.run_uri == second.run_uri


def test_every_setting_belongs_to_one_section():
    """All settings can be reached by --set."""
    assert {f"{name}.{entry.name}" for name, cls in SECTIONS.items() for entry in fields(cls)} | {
        "run_uri",
        "seed",
    } == set(_TYPES)


def test_no_setting_can_hold_a_secret():
    """Credentials come from boto3's chain; nothing here has a name for them."""
    words = ("secret", "password", "access_key", "token_", "credential")

    assert not [key for key in _TYPES if any(word in key for word in words)]


def test_the_password_of_a_gateway_is_not_stored():
    """What is shown and kept with a run names the Pushgateway without user and password."""
    config = load_config(overrides=("observe.pushgateway_url=https://user:pass@gate:9091/a@b",)).config

    assert plain(config)["observe"]["pushgateway_url"] == "https://gate:9091/a@b"
    assert config.observe.pushgateway_url == "https://user:pass@gate:9091/a@b"


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs/one"),
        ("s3://bucket/runs/one", "s3://bucket/runs/one/code/"),
        ("s3://bucket/code/one", "s3://bucket/code"),
        ("runs/one", "./runs/one/code"),
        ("runs/one", "runs/../runs/one"),
        ("/runs/one", "file:///runs/one/code"),
        ("file:///runs%20of%20mine/one", "/runs of mine/one/code"),
    ],
)
def test_no_code_comes_from_where_a_run_lies(run, code):
    """Whoever may write checkpoints, or tokens, must not thereby have the job run code."""
    for name in ("run_uri", "data.cache_uri"):
        (found,) = problems(overrides=["run_uri=elsewhere", f"{name}={run}", f"runtime.compile_cache_uri={code}"])
        assert found == f"runtime.compile_cache_uri={code} shares its place with {name}={run}: name one of its own"


def test_code_may_lie_beside_a_run():
    """In the same bucket or folder, under a name of its own."""
    for run, code in (("s3://bucket/runs/one", "s3://bucket/runs/one-code"), ("runs/one", "runs/code")):
        load_config(overrides=[f"run_uri={run}", f"runtime.compile_cache_uri={code}"])
