"""A writer of TensorFlow checkpoints for tests: whole ones of any shape, and ones that say what cannot be."""

import json

import google_crc32c

MAGIC = 0xDB4775248B80FB57


def varint(value):
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def masked(data):
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def entry(shape, start, size, crc, shard=0, dtype=1, more=b""):
    """What the index says of a tensor."""
    dimensions = b"".join(message(2, number(1, length)) for length in shape)
    facts = number(1, dtype) + message(2, dimensions)
    facts += number(3, shard) + number(4, start) + number(5, size)
    return facts + varint(6 << 3 | 5) + crc.to_bytes(4, "little") + more


def header(shards=1, order=0, oldest_reader=0):
    """What the index says of the whole."""
    return number(1, shards) + number(2, order) + message(3, number(1, 1) + number(2, oldest_reader))


def block(entries, compression=0):
    """Entries that share what they begin with, a restart at the first, and the trailer."""
    content, last = b"", b""
    for key, value in entries:
        shared = next((n for n, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes([compression])
    return content + masked(content).to_bytes(4, "little")


def table(entries, per_block=5, compression=0):
    """A table of these entries, few in a block so that there are several."""
    found, handles = b"", []
    for first in range(0, len(entries), per_block):
        content = block(entries[first : first + per_block], compression)
        handles.append((entries[first : first + per_block][-1][0], varint(len(found)) + varint(len(content) - 5)))
        found += content
    places = b""
    for content in (block([]), block(handles)):
        places += varint(len(found)) + varint(len(content) - 5)
        found += content
    return found + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def index_of(variables, shards=1):
    """Entries of the index, and the data files."""
    files = [b""] * shards
    entries = [(b"", header(shards))]
    for place, (name, values) in enumerate(sorted(variables.items())):
        shard, data = place % shards, values.tobytes()
        entries.append((name.encode(), entry(values.shape, len(files[shard]), len(data), masked(data), shard)))
        files[shard] += data
    return entries, files


def write_bundle(folder, variables, hparams, shards=1):
    """`model.ckpt.*` and `hparams.json`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, files = index_of(variables, shards)
    (folder / "model.ckpt.index").write_bytes(table(entries))
    for shard, data in enumerate(files):
        (folder / f"model.ckpt.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    (folder / "hparams.json").write_text(json.dumps(hparams))
    return folder
