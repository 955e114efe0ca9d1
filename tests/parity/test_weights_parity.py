"""transformers and this job compute the same from the same weights, whichever of them wrote the files."""

import json

import pytest
import torch

import job
from job.config import ModelConfig
from job.config_file import load_config
from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.bpe import BpeTokenizer
from job.data.gpt2_files import PATTERN, gpt2_tokenizer
from job.data.huggingface_tokenizer import huggingface_files
from job.model.gpt import GPT
from job.model.weights import find_weights, load_weights
from job.training.export import export_files
from tests.tensorflow.bundle import write_bundle
from tests.unit.data_support import config_for, published, still
from tests.unit.weights_support import listed, model, openai_sizes, openai_variables

transformers = pytest.importorskip("transformers", reason="needs transformers, the other implementation of GPT-2")

SHAPES = {
    "124M scaled down": {"n_layer": 12, "n_head": 12, "n_embd": 48, "n_positions": 64, "vocab_size": 503},
    "355M scaled down": {"n_layer": 24, "n_head": 16, "n_embd": 64, "n_positions": 64, "vocab_size": 503},
    "774M scaled down": {"n_layer": 36, "n_head": 20, "n_embd": 80, "n_positions": 64, "vocab_size": 503},
    "1558M scaled down": {"n_layer": 48, "n_head": 25, "n_embd": 100, "n_positions": 64, "vocab_size": 503},
    "one layer": {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 3, "vocab_size": 2},
    "odd": {"n_layer": 2, "n_head": 3, "n_embd": 21, "n_positions": 17, "vocab_size": 1009},
}
SHAPES["untied"] = {**SHAPES["odd"], "tie_word_embeddings": False}
SHAPES["relu"] = {**SHAPES["odd"], "activation_function": "relu"}


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.fixture(scope="module", params=SHAPES)
def theirs(request):
    """A GPT-2 of theirs with random numbers in every place, and tokens (2, T)."""
    torch.manual_seed(1)
    settings = SHAPES[request.param]
    found = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return found, torch.randint(0, settings["vocab_size"], (2, settings["n_positions"]))


@pytest.mark.parametrize("shard", ["10GB", "1KB"])
def test_what_they_saved(theirs, tmp_path, shard):
    """A model that transformers saved, in one file or many, has its logits here to 1e-4."""
    there, tokens = theirs
    there.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "10GB")

    close(load_weights(find_weights(listed(tmp_path), "here"))(tokens), there(tokens).logits)


def test_the_same_as_openai_would_save_it(theirs, tmp_path):
    """The same numbers in a TensorFlow checkpoint have these logits too."""
    there, tokens = theirs
    if not there.config.tie_word_embeddings or there.config.activation_function != "gelu_new":
        pytest.skip("OpenAI's format has neither an untied head nor ReLU")
    there.save_pretrained(tmp_path / "theirs")
    same = load_weights(find_weights(listed(tmp_path / "theirs"), "here"))
    folder = write_bundle(tmp_path / "openai", openai_variables(same), openai_sizes(same), shards=3)

    close(load_weights(find_weights(listed(folder), "here"))(tokens), there(tokens).logits)


def exported(folder, ours, tokenizer):
    """What `export_files` makes of a model, as a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in export_files(ours, tokenizer, load_config().config, {}).items():
        (folder / name).write_bytes(b"".join(content))
    return folder


def test_back_again(theirs, tmp_path):
    """Read, exported and read by transformers, a model has the logits it began with."""
    there, tokens = theirs
    there.save_pretrained(tmp_path / "theirs")
    ours = load_weights(find_weights(listed(tmp_path / "theirs"), "here"))
    again, problems = transformers.AutoModelForCausalLM.from_pretrained(
        exported(tmp_path / "ours", ours, ByteTokenizer()), output_loading_info=True
    )

    assert not any(problems.values())
    close(again.eval()(tokens).logits, there(tokens).logits)


OURS = {
    "tied": {},
    "untied": {"tie_weights": False},
    "no qkv bias": {"qkv_bias": False},
    "no bias": {"bias": False, "qkv_bias": False},
    "relu": {"activation": "relu"},
    "scale of the width": {"attention_scale": "embd"},
    "scale of the width, no qkv bias": {"attention_scale": "embd", "qkv_bias": False},
}


@pytest.mark.parametrize("settings", OURS)
def test_ours_there(tmp_path, settings):
    """Whatever GPT-2's format can express has our logits in transformers, and its head stays as it is."""
    ours = model(vocab_size=257, **OURS[settings])
    there, problems = transformers.AutoModelForCausalLM.from_pretrained(
        exported(tmp_path, ours, ByteTokenizer()), output_loading_info=True
    )
    tokens = torch.randint(0, 257, (2, 16))

    assert not any(problems.values())
    assert (there.lm_head.weight is there.transformer.wte.weight) == ours.config.tie_weights
    close(there.eval()(tokens).logits, ours(tokens))


@pytest.mark.parametrize("settings", [{"n_embd": 9, "head_size": 5}, {"final_norm": False}])
def test_ours_alone(tmp_path, settings):
    """What it cannot express comes back here, and its card says why it is no GPT-2."""
    ours = model(vocab_size=257, **settings)
    folder = exported(tmp_path, ours, ByteTokenizer())
    tokens = torch.randint(0, 257, (2, 16))

    assert torch.equal(job.load_model(str(folder))(tokens), ours(tokens))
    assert json.loads((folder / "config.json").read_bytes())["model_type"] == "gpt-pretrain-job"
    assert "GPT-2's format cannot express this model" in (folder / "README.md").read_text()


TEXTS = [
    "the thaw\n\n  of 12 things, isn't it?",
    " abc",
    "漢字 😀 naïve\t",
    "a" * 300,
    "",
    "\r\n \u00a0x",
    "don't  'll",
]


def small():
    ranks = {bytes([byte]): byte for byte in range(256)}
    return BpeTokenizer("small", PATTERN, ranks | {b"th": 256, b"the": 257, b" a": 258}, {"<|endoftext|>": 259})


def other_pattern():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"  ": 257}
    pattern = r"""[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    return BpeTokenizer("other", pattern, ranks, {"<|endoftext|>": 258})


def published_gpt2(folder):
    where = str(published("vocab.bpe").parent)
    return gpt2_tokenizer(config_for(folder, "unused", tokenizer_dir=where), still)


TOKENIZERS = {
    "gpt2": published_gpt2,
    "small": lambda _: small(),
    "other pattern": lambda _: other_pattern(),
    "byte": lambda _: ByteTokenizer(),
    "char": lambda _: CharTokenizer("".join(TEXTS)),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_there(tmp_path, kind):
    """transformers' AutoTokenizer makes the same tokens of any text as ours, and the same text of them."""
    ours = TOKENIZERS[kind](tmp_path)
    (tmp_path / "export").mkdir()
    for name, content in huggingface_files(ours, 16).items():
        (tmp_path / "export" / name).write_bytes(content)
    (tmp_path / "export" / "config.json").write_text('{"model_type": "gpt2"}')
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    found = {text: there(text, verbose=False)["input_ids"] for text in TEXTS}

    assert found == {text: ours.encode_ordinary(text).tolist() for text in TEXTS}
    assert {there.decode(tokens) for tokens in found.values()} == set(TEXTS)
    if ours.end_of_text is not None:
        assert there("<|endoftext|>")["input_ids"] == [there.eos_token_id] == [ours.end_of_text]


def test_shapes_are_the_released():
    """Our settings of the four sizes count the parameters that transformers counts."""
    sizes = {(12, 12, 768): 124_439_808, (24, 16, 1024): 354_823_168, (36, 20, 1280): 774_030_080}
    sizes |= {(48, 25, 1600): 1_557_611_200}
    with torch.device("meta"):
        for (layers, heads, width), count in sizes.items():
            shape = ModelConfig(n_layer=layers, n_head=heads, n_embd=width)
            assert GPT(shape, 50257).parameter_count == count
