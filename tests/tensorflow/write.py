"""Writes the kept checkpoint with TensorFlow itself: python -m tests.tensorflow.write FOLDER.

Needs TensorFlow, and so an environment of its own: `make parity` has one.
"""

import json
import sys
from pathlib import Path

import tensorflow as tf

from tests.tensorflow.numbers import HPARAMS, SHARDS, variables


def write(folder):
    """`model.ckpt.*` in several shards, as a saver of a model spread over devices leaves it, and `hparams.json`."""
    found = variables()
    prefix = str(folder / "model.ckpt")
    parts = []
    for shard in range(SHARDS):
        names = sorted(found)[shard::SHARDS]
        parts.append(f"{prefix}_temp/part-{shard:05d}-of-{SHARDS:05d}")
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(found[name]) for name in names],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)
    (folder / "hparams.json").write_text(json.dumps(HPARAMS) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write(target)
