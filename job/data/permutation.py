"""Random-looking numbers and permutations, computed for one element alone: nothing is drawn, nothing is stored.

The hash is splitmix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"). A permutation
of 0..size-1 is a Feistel network over the next power of two, walked until it lands inside (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains").
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
EPOCH = np.uint64(0xD1342543DE82EF95)
VALUE = np.uint64(0xA0761D6478BD642F)


def key(seed: int, purpose: str) -> np.uint64:
    """A 64-bit key for one use of a seed."""
    return np.uint64(int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:8], "big"))


def mix(words: Words) -> Words:
    """(n,) -> (n,): splitmix64's hash, a bijection of 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def permuted(places: NDArray[Any], epochs: NDArray[Any], size: int, key: np.uint64) -> NDArray[np.int64]:
    """Where each place 0..size-1 (n,) goes in the permutation of its epoch (n,) -> (n,) int64."""
    keys = mix(key + mix(epochs.astype(np.uint64) * EPOCH + GOLDEN))
    bits = max(1, (size - 1).bit_length())
    found = _feistel(places.astype(np.uint64), keys, bits)
    while (outside := np.flatnonzero(found >= np.uint64(size))).size:
        found[outside] = _feistel(found[outside], keys[outside], bits)
    return found.astype(np.int64)


def _feistel(words: Words, keys: Words, bits: int) -> Words:
    """(n,) -> (n,): a permutation of 0..2**bits-1. Each round hashes one half into the other."""
    half = np.uint64((bits + 1) // 2)
    masks = np.uint64((1 << int(half)) - 1), np.uint64((1 << (bits - int(half))) - 1)
    low, high = words & masks[0], words >> half
    for number in range(ROUNDS):
        keys = keys + GOLDEN  # the caller's stay as they are
        if number % 2:
            high = high ^ (mix(keys + low * VALUE) & masks[1])
        else:
            low = low ^ (mix(keys + high * VALUE) & masks[0])
    return (high << half) | low
