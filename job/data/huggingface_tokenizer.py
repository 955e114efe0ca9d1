"""A tokenizer as the files that `transformers` and `tokenizers` read.

Characters become a table of words of one character, so that an unknown one is an error there as it is here; bytes
become a byte-level BPE that merges nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

from job.data.alphabets import END_OF_TEXT, CharTokenizer
from job.data.bpe import BpeTokenizer, merged_from
from job.data.gpt2_files import PATTERN, shown_token
from job.data.tokenizer import Tokenizer
from job.data.weight_tokenizers import OWN


def huggingface_files(tokenizer: Tokenizer, context_length: int) -> dict[str, bytes]:
    """The files by name; where those of GPT-2 would not say all, ours is among them."""
    special = _special_tokens(tokenizer)
    end = END_OF_TEXT if END_OF_TEXT in special else None
    facts = {"model_max_length": context_length, "clean_up_tokenization_spaces": False, "add_prefix_space": False}
    named = {"bos_token": end, "eos_token": end, "unk_token": end} if end else {}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **facts, **named}
    files: dict[str, Any] = {"special_tokens_map.json": named}
    if isinstance(tokenizer, BpeTokenizer):
        merges = [(shown_token(left), shown_token(right)) for left, right in merged_from(tokenizer.ranks).values()]
        numbers = {shown_token(token): rank for token, rank in tokenizer.ranks.items()} | special
        whole = len(merges) + 256 == len(tokenizer.ranks)
        model = _bpe(numbers, merges, ignore_merges=not whole)
        before = _byte_level(tokenizer.pattern)
        if tokenizer.pattern == PATTERN and whole:
            config["tokenizer_class"] = "GPT2Tokenizer"
            files["vocab.json"] = numbers
            files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, merges), ""])
    elif isinstance(tokenizer, CharTokenizer):
        model = {"type": "WordLevel", "vocab": tokenizer.numbers, "unk_token": _absent(tokenizer.numbers)}
        before = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    else:
        model = _bpe({shown_token(bytes([byte])): byte for byte in range(256)} | special, [], ignore_merges=False)
        before = _byte_level(None)
    after = {"type": "Fuse"} if isinstance(tokenizer, CharTokenizer) else _BYTE_LEVEL
    files["tokenizer.json"] = _tokenizer(model, before, after, special)
    files["tokenizer_config.json"] = config
    own = {} if "vocab.json" in files else {OWN: tokenizer.to_json()}
    return own | {name: _bytes(content) for name, content in files.items()}


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    if isinstance(tokenizer, BpeTokenizer):
        return dict(tokenizer.special_tokens)
    return {} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}


def _absent(numbers: Mapping[str, int]) -> str:
    """A word that is none of the characters: what stands for the unknown, and is unknown itself."""
    return "<unknown>" if "<unknown>" not in numbers else "<unknown character>"


def _bpe(numbers: Mapping[str, int], merges: list[tuple[str, str]], ignore_merges: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(numbers),
        "merges": [list(pair) for pair in merges],
    }


def _byte_level(pattern: str | None) -> dict[str, Any]:
    """What divides text and writes its bytes as characters: by GPT-2's pattern, another one, or none."""
    if pattern == PATTERN:
        return _BYTE_LEVEL
    plain = {**_BYTE_LEVEL, "use_regex": False}
    if pattern is None:
        return plain
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, plain]}


def _tokenizer(
    model: dict[str, Any], before: dict[str, Any], after: dict[str, Any], special: Mapping[str, int]
) -> dict[str, Any]:
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **marks} for text, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": after,
        "model": model,
    }


def _bytes(content: Any) -> bytes:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text.encode()
