"""A trained tokenizer's files beside its run, as tiktoken and Hugging Face's libraries read them."""

import base64
import json

from job.data.bpe import BpeTokenizer
from job.data.bpe_training import PREFIX
from job.data.huggingface_tokenizer import huggingface_files
from job.data.tokenizer import Tokenizer
from job.infra.object_store import ObjectStore

FOLDER = "tokenizer"


def save_trained(objects: ObjectStore, tokenizer: Tokenizer, context_length: int) -> None:
    """Write `tokenizer/` under the run, if its tokenizer was trained for it; others have files of their own."""
    if not (isinstance(tokenizer, BpeTokenizer) and tokenizer.kind.startswith(PREFIX)):
        return
    for name, content in {**tiktoken_files(tokenizer), **huggingface_files(tokenizer, context_length)}.items():
        objects.put(f"{FOLDER}/{name}", [content])


def tiktoken_files(tokenizer: BpeTokenizer) -> dict[str, bytes]:
    """The ranks as `tiktoken.load.load_tiktoken_bpe` reads them, and what else `tiktoken.Encoding` is called with."""
    ranks = sorted(tokenizer.ranks.items(), key=lambda entry: entry[1])
    arguments = {
        "name": tokenizer.kind,
        "pat_str": tokenizer.pattern,
        "special_tokens": dict(tokenizer.special_tokens),
        "explicit_n_vocab": tokenizer.vocab_size,
    }
    return {
        "vocab.tiktoken": b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks),
        "tiktoken.json": json.dumps(arguments, indent=1, ensure_ascii=False).encode(),
    }
