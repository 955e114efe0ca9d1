"""What a person should know of an exported model: what it is, what it was trained on, how well, by what."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from job.config import Config
from job.data.tokenizer import Tokenizer
from job.model.shapes import Shape


def model_card(
    shape: Shape, config: Config, facts: Mapping[str, Any], tokenizer: Tokenizer, reasons: Sequence[str]
) -> str:
    """`README.md` of an export.

    Args:
        facts: What the record of the checkpoint says.
        reasons: Why GPT-2's format cannot express the model; empty when it can.
    """
    library = "transformers" if not reasons else "gpt-pretrain-job"
    head = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [gpt2, gpt-pretrain-job]", "---"]
    return "\n".join([*head, "", *_use(reasons), "", *_table(shape, config, facts, tokenizer), "", *_settings(config)])


def _use(reasons: Sequence[str]) -> list[str]:
    if not reasons:
        return [
            "# A GPT-2 language model",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
            "```",
        ]
    return [
        "# A GPT language model",
        "",
        "GPT-2's format cannot express this model, so its parameters keep the names of gpt-pretrain-job:",
        *(f"- {reason}" for reason in reasons),
        "",
        "```python",
        'import job; model = job.load_model(".")',
        "```",
    ]


def _table(shape: Shape, config: Config, facts: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    model, losses = shape.model, facts.get("eval") or {}
    code = facts.get("code") or {}
    splits = (facts.get("corpus") or {}).get("splits") or {}
    rows = {
        "Shape": f"{model.n_layer} layers, {model.n_head} heads of {model.head_width}, width {model.n_embd}, "
        f"context {model.context_length}, vocabulary {shape.vocab_size:,}",
        "Tokenizer": f"{tokenizer.kind} (sha256 {tokenizer.sha256})",
        "Weights imported from": (facts.get("imported") or {}).get("uri"),
        "Corpus": ", ".join(config.data.corpus) if splits else None,
        "Corpus sha256": (facts.get("corpus") or {}).get("fingerprint"),
        "Tokens of the corpus": ", ".join(f"{name} {split['tokens']:,}" for name, split in sorted(splits.items())),
        "Step": facts.get("step"),
        "Tokens trained on": f"{facts['tokens']:,}" if facts.get("tokens") else None,
        "Train loss, nats per token": losses.get("train_loss"),
        "Validation loss, nats per token": losses.get("val_loss"),
        "Chain of steps": facts.get("chain"),
        "Numerics": ", ".join(f"{name} {value}" for name, value in sorted((facts.get("numerics") or {}).items())),
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted((code.get("packages") or {}).items())),
        "Code revision": code.get("git"),
    }
    return [
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None),
    ]


def _cell(value: object) -> str:
    shown = f"{value:.6f}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ") or "-"


def _settings(config: Config) -> list[str]:
    chosen = {"seed": config.seed}
    for section in (config.optimizer, config.training):
        chosen |= {name: getattr(section, name) for name in section.__dataclass_fields__}
    return ["Settings:", "", "```json", json.dumps(chosen, indent=1), "```", ""]
