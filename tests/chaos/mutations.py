"""Files spoilt in every way that storage, a disk or a person with an editor could: bytes, lengths, headers, JSON."""

import json
import struct
from random import Random
from typing import Any

DEEP = "[" * 100_000 + "]" * 100_000
VALUES = (
    "null", "true", "false", "-1", "0", "1", "2.5", "-0.0", "1e999", "NaN", "-Infinity", "9" * 5000, "1e308", '""',
    '"5"', '"\\ud800"', '"\\u0000"', "[]", "{}", "[[]]", '{"a":1}', DEEP, "18446744073709551616", "[0,-1]", '[0,"8"]',
    '"F32"', '"F16"', '"BOOL"', '"I64"', '"F99"', "[257,8]", "[8,257]", "[2056]", "[]", "[4294967296,4294967296]",
)  # fmt: skip


def mutate(name: str, content: bytes, others: list[bytes], pick: Random) -> bytes:
    """A spoilt copy of a file."""
    own = spoil_safetensors if name.endswith(".safetensors") else spoil_json
    return own(content, pick) if pick.random() < 0.6 else spoil_bytes(content, others, pick)


def spoil_bytes(content: bytes, others: list[bytes], pick: Random) -> bytes:
    """Bits, bytes, blocks, ends."""
    spoilt, at = bytearray(content), pick.randrange(len(content) + 1)
    length = pick.choice([1, 8, 64, 512, 4096])
    kind = pick.randrange(8)
    if kind == 0 and at < len(content):
        spoilt[at] ^= 1 << pick.randrange(8)
    elif kind == 1 and at < len(content):
        spoilt[at] = pick.randrange(256)
    elif kind == 2:
        spoilt[at : at + length] = bytes(len(spoilt[at : at + length]))
    elif kind == 3:
        del spoilt[at:]
    elif kind == 4:
        spoilt += pick.randbytes(length)
    elif kind == 5:
        spoilt[at : at + length] = content[pick.randrange(len(content)) :][:length]
    elif kind == 6:
        other = pick.choice(others)
        spoilt[at:] = other[pick.randrange(len(other) + 1) :]
    else:
        del spoilt[at : at + length]
    return bytes(spoilt)


def spoil_safetensors(content: bytes, pick: Random) -> bytes:
    """The length of the header, what it says of a tensor, or numbers that are none."""
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length], content[8 + length :]
    kind = pick.randrange(6)
    if kind == 0:
        wrong = pick.choice([0, 1, length - 1, length + 1, length + 8, len(content), 1 << 31, 1 << 62, (1 << 64) - 1])
        return struct.pack("<Q", wrong) + content[8:]
    if kind == 1:  # NaN, infinity or anything else in the place of a number
        spoilt, at = bytearray(data), pick.randrange(len(data) // 4) * 4
        spoilt[at : at + 4] = pick.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", pick.randbytes(4)])
        return content[: 8 + length] + bytes(spoilt)
    if kind == 2:
        return _file(spoil_json(text, pick), data)
    header = json.loads(text)
    first, second = pick.sample(sorted(header), 2)
    if kind == 3:  # one tensor's bytes are another's
        header[first]["data_offsets"] = header[second]["data_offsets"]
    elif kind == 4:  # names exchanged
        header[first], header[second] = header[second], header[first]
    else:
        start, end = header[first]["data_offsets"]
        shift = pick.choice([-8, -4, 1, 4, 8, 1 << 40])
        header[first]["data_offsets"] = pick.choice([[start + shift, end + shift], [start, end + shift], [end, start]])
    return _file(json.dumps(header, separators=(",", ":")).encode(), data)


def _file(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def spoil_json(content: bytes, pick: Random) -> bytes:
    """A value replaced, a name twice, missing, new or changed; numbers and depths that no reader expects."""
    try:
        value = json.loads(content)
    except ValueError:  # JSON lines
        lines = content.splitlines(keepends=True)
        at = pick.randrange(len(lines))
        lines[at] = spoil_json(lines[at], pick) + b"\n"
        return b"".join(lines)
    if pick.random() < 0.05:
        return pick.choice([b"", b"\xef\xbb\xbf" + content, content * 2, content.decode().encode("utf-16"), b"null"])
    return _spoilt(value, pick).encode(errors="surrogatepass")


def _spoilt(value: Any, pick: Random) -> str:
    """JSON of `value` with one thing wrong somewhere in it."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or pick.random() < 0.1:
        return pick.choice(VALUES)
    at = pick.choice(inner)
    if isinstance(value, list):
        return "[" + ",".join(_spoilt(x, pick) if n == at else json.dumps(x) for n, x in enumerate(value)) + "]"
    pairs = [(json.dumps(name), json.dumps(inside)) for name, inside in value.items()]
    place = inner.index(at)
    name, text = pairs[place]
    kind = pick.randrange(8)
    if kind == 0:
        del pairs[place]
    elif kind == 1:
        pairs.append((name, pick.choice(VALUES)))
    elif kind == 2:
        pairs.insert(place, (name, pick.choice(VALUES)))
    elif kind == 3:
        pairs.append((pick.choice(['"new"', '"__metadata__"', '""', '"lm_head.weight"']), pick.choice([*VALUES, text])))
    elif kind == 4:
        pairs[place] = (pick.choice(['"other"', name.upper()]), text)
    else:
        pairs[place] = (name, _spoilt(value[at], pick))
    return "{" + ",".join(f"{name}:{text}" for name, text in pairs) + "}"
