"""The tokenizer beside weights: OpenAI's two files, Hugging Face's two or its one, all byte-level BPE, or our own.

tiktoken merges whatever pair makes a token of lower rank. That is what a list of merges means only if tokens are
numbered in the order of their merges and each is made of the pair that its list has: both are checked.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from job.data.bpe import BpeTokenizer, merged_from
from job.data.gpt2_files import BYTE_TOKENS, PATTERN, PUBLISHED_SHA256, byte_token, shown_token
from job.data.tokenizer import Tokenizer, load_tokenizer
from job.errors import DataError
from job.infra.object_store import folder_errors

OWN = "job_tokenizer.json"
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_MORE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")  # of Hugging Face's BPE
_MAX_BYTES = 64 << 20


def read_tokenizer(files: Mapping[str, Path], vocab_size: int, where: str) -> Tokenizer:
    """The tokenizer among the files of a folder of weights.

    Raises:
        DataError: There is none, or it is damaged, larger than the model's vocabulary, or no byte-level BPE.
    """
    tokenizer = _find(files, where)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}")
    return tokenizer


def _find(files: Mapping[str, Path], where: str) -> Tokenizer:
    if OWN in files:
        return load_tokenizer(_content(files[OWN]))
    for numbers, merges in _PAIRS:
        if numbers in files and merges in files:
            lines = _text(files[merges]).split("\n")
            pairs = [line for line in lines if line and not line.startswith("#version")]
            return _bpe(_object(files[numbers]), pairs, {}, PATTERN, str(files[merges]))
    if "tokenizer.json" in files:
        return _from_huggingface(_object(files["tokenizer.json"]), str(files["tokenizer.json"]))
    names = " or ".join(" with ".join(pair) for pair in _PAIRS)
    raise DataError(f"{where}: no tokenizer here: expected {names}, or tokenizer.json")


def _from_huggingface(facts: Mapping[str, Any], where: str) -> BpeTokenizer:
    """A `tokenizer.json` of the library `tokenizers`, where it says byte-level BPE and nothing more."""
    try:
        model, before, added = facts["model"], facts.get("pre_tokenizer") or {}, facts.get("added_tokens") or []
        special = {token["content"]: int(token["id"]) for token in added}
        kind, numbers, merges = model.get("type"), model["vocab"], model["merges"]
        steps = before.get("pretokenizers", [before])
        pattern = _pattern(steps)
        rules = (
            (kind == "BPE", f"model.type is {kind!r}, expected 'BPE'"),
            (facts.get("normalizer") is None, "normalizer is set, expected null"),
            (pattern is not None, f"pre_tokenizer is {[step.get('type') for step in steps]}, expected ByteLevel"),
            (not any(step.get("add_prefix_space") for step in steps), "add_prefix_space is true, expected false"),
            (not any(map(model.get, _MORE)), f"model has one of {', '.join(_MORE)}"),
        )
        if problems := [text for holds, text in rules if not holds]:
            raise DataError(f"{where}: {'; '.join(problems)}")
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{where}: not a tokenizer.json that is known: {type(error).__name__}: {error}") from error
    return _bpe(numbers, lines, special, pattern or PATTERN, where)


def _pattern(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The pattern that divides text into words: ByteLevel's own is GPT-2's; None for what is not known."""
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return PATTERN
        case ["Split", "ByteLevel"] if steps[0].get("behavior") == "Isolated" and not steps[1].get("use_regex", True):
            pattern = steps[0].get("pattern", {}).get("Regex")
            return pattern if isinstance(pattern, str) else None
    return None


def _bpe(
    numbers: Mapping[str, Any], merges: Iterable[str], added: Mapping[str, int], pattern: str, where: str
) -> BpeTokenizer:
    """The tokenizer of tokens' numbers and the merges that make them, both written GPT-2's way."""
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in (*numbers.values(), *added.values())):
        raise DataError(f"{where}: a token's number is none from 0 to 2**31 - 1")
    if absent := [token for token in BYTE_TOKENS if token not in numbers]:
        raise DataError(f"{where}: {len(absent)} of the 256 bytes are no tokens, such as {absent[0]!r}")
    pairs = _pairs(numbers, merges, where)
    ordinary = {*BYTE_TOKENS, *(shown_token(token) for token in pairs)}
    ranks = {byte_token(token): number for token, number in numbers.items() if token in ordinary}
    special = {token: number for token, number in {**numbers, **added}.items() if token not in ordinary}
    if len({*ranks.values(), *special.values()}) != len(ranks) + len(special):
        raise DataError(f"{where}: two tokens have the same number")
    try:
        found = BpeTokenizer("gpt2", pattern, ranks, special)
    except (ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{where}: {error}") from error
    if found.sha256 == PUBLISHED_SHA256:
        return found
    for token, merged in merged_from(ranks).items():
        if pairs.get(token) != merged:
            raise DataError(f"{where}: {token!r} is listed as {pairs.get(token)}, but {merged} are merged before that")
    return BpeTokenizer("bpe", pattern, ranks, special)


def _pairs(numbers: Mapping[str, Any], merges: Iterable[str], where: str) -> dict[bytes, tuple[bytes, bytes]]:
    """What each merge makes, and of which two; DataError when tokens are not numbered in the order of their merges."""
    pairs: dict[bytes, tuple[bytes, bytes]] = {}
    last = -1
    for line in merges:
        left, _, right = line.partition(" ")
        number = numbers.get(left + right)
        if number is None or number <= last:
            raise DataError(f"{where}: the merge {line!r} makes token {number}, expected one above {last}")
        try:
            pair = (byte_token(left), byte_token(right))
        except KeyError as error:
            raise DataError(f"{where}: the merge {line!r} has {error}, which stands for no byte") from error
        last = number
        pairs[pair[0] + pair[1]] = pair
    return pairs


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found


def _text(path: Path) -> str:
    try:
        return _content(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from error


def _content(path: Path) -> bytes:
    with folder_errors(f"read {path}"):
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, at most {_MAX_BYTES} are read")
        return path.read_bytes()
