"""EleutherAI's lm-evaluation-harness runs on an export, on a task of our own, and finds what the model itself says."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from job.config import ModelConfig
from job.config_file import load_config
from job.data.alphabets import ByteTokenizer
from job.model.gpt import GPT, evaluating
from job.training.export import export_files

pytest.importorskip("transformers", reason="needs transformers, which the harness reads exports with")
pytest.importorskip("lm_eval", reason="needs lm-eval, the evaluation harness")

LEARNED = ["the cat sat on the mat", "a dog ran to the house"]
UNKNOWN = ["one fish swims in the sea", "rain falls on my hat"]
SENTENCES = [*LEARNED, *UNKNOWN]
TASK = """
task: last_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' ' + text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def train(model, tokens):
    """Learn rows of tokens by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = sum(F.cross_entropy(model(row[None, :-1])[0], row[1:]) for row in tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    """A model of bytes that knows two of the sentences."""
    torch.manual_seed(0)
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64)
    tokenizer = ByteTokenizer()
    rows = [torch.tensor([int(token) for token in tokenizer.encode(text)]) for text in LEARNED]
    return train(GPT(config, tokenizer.vocab_size), rows)


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    """What the harness says of the model's export."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "export").mkdir()
    for name, content in export_files(model, ByteTokenizer(), load_config().config, {}).items():
        (folder / "export" / name).write_bytes(b"".join(content))
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    (folder / "task.yaml").write_text(TASK.format(questions=questions))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(folder / "cache"))
        import lm_eval
        from lm_eval.tasks import TaskManager

        return lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder / "export"), "device": "cpu", "dtype": "float32"},
            tasks=["last_word"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )


def last_word(model, text):
    """Nats of a sentence's last word after the others, negative, and whether each byte of it is the most probable."""
    tokens = torch.tensor([int(token) for token in ByteTokenizer().encode(text)])
    count = len(text.rpartition(" ")[2]) + 1
    with evaluating(model), torch.inference_mode():
        chances = model(tokens[None, :-1])[0, -count:].log_softmax(-1)
    targets = tokens[-count:]
    return float(chances.gather(1, targets[:, None]).sum()), bool((chances.argmax(-1) == targets).all())


def test_log_likelihoods(model, found):
    """Each answer has the log-likelihood, and is or is not the greedy one, as the model itself says."""
    said = {sample["doc"]["text"]: sample["filtered_resps"][0] for sample in found["samples"]["last_word"]}

    assert set(said) == set(SENTENCES)
    for text in SENTENCES:
        loss, greedy = last_word(model, text)
        assert float(said[text][0]) == pytest.approx(loss, abs=1e-3)
        assert bool(said[text][1]) == greedy


def test_metrics(model, found):
    """Perplexity and accuracy are those of the answers: it knows what it has learned and nothing else."""
    results = found["results"]["last_word"]
    mean = sum(last_word(model, text)[0] for text in SENTENCES) / len(SENTENCES)

    assert results["acc,none"] == len(LEARNED) / len(SENTENCES)
    assert results["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-3)
