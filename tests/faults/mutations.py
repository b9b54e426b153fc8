"""What happens to files: by bad disks, cut transfers, editors, and people who mean harm.

    of_bytes(content, rng)      flipped bits, cuts, insertions, blocks twice, integers at their limits
    of_json(content, rng)       a value of the structure replaced, taken out or nested; then the text
    of_yaml(content, rng)       the same, and what YAML alone can say: aliases, tags, dates
    of_lines(content, rng)      either, line by line

All by the generator alone: the same seed makes the same inputs.
"""

import json
import random
import re
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]

EXTREME = [
    0,
    1,
    -1,
    2,
    127,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
PATHS = ["..", "../../../etc/passwd", "/etc/passwd", ".", "", "a/b", "a\0b", "\ud800", "con\n", "~", "-oProxyCommand=x"]
VALUES: list[Any] = [
    *EXTREME, *PATHS, None, True, False, -(2**63), 10**30, 10**4000, 0.5, 1e308, -1e-320, float("nan"), float("inf"),
    "x" * 5000, [], {}, [[]], {"": {}}, [None] * 300, "os:system", ".a:b", ":", "__proto__", "é\u2028", "1e9", "0x10",
]  # fmt: skip
DEEP = "@deep@"
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
TAGS = [
    "!!python/object/apply:os.system [exit 3]", "!!python/name:os.system", "!!binary aGk=", "!!timestamp 2001-13-41",
    "2001-02-31", "!!float x", "!!int 1_", "1:99:99", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1, a: 2]", "!x y",
    "&a [*a]", "*nowhere", "? {a: 1}", "<<: 3", "{<<: [1]}", "%YAML 9.9", "--- a\n--- b", "'", '"\\ud800"', '"\\0"',
    "9" * 5000, "0x" + "f" * 3000, "{? [a]: b}", "!!null x", "!!bool maybe", "=", "!!str {}", "!!seq 3", "!!map 3",
    "\t",
]  # fmt: skip


def of_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three changes that know nothing of the format."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        size = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
        match rng.randrange(9):
            case 0 | 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 7, 8, 300)))
            case 4:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 5:
                del data[at : at + size]
            case 6 | 7:
                _extreme_integer(data, rng)
            case _:
                data[at : at + size] = bytes([rng.choice((0, 255, 0x0A, 0x7B, 0x22))]) * size
    return bytes(data)


def _extreme_integer(data: bytearray, rng: random.Random) -> None:
    """In binary, little endian, near the beginning, where headers are; or one that is written out."""
    numbers = list(NUMBER.finditer(bytes(data[:4000]))) if rng.random() < 0.5 else []
    if numbers:
        found = rng.choice(numbers)
        data[found.start() : found.end()] = str(rng.choice([*VALUES[:16], 10**30, -1, 1e308])).encode()
        return
    form = rng.choice("BHIQ")
    size = struct.calcsize(form)
    at = rng.randrange(min(len(data), rng.choice((16, 64, 1 << 20))) + 1)
    data[at : at + size] = struct.pack(f"<{form}", rng.choice(EXTREME) % 2 ** (8 * size))


def of_json(content: bytes, rng: random.Random) -> bytes:
    """A change of the structure, or of the bytes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    value = _changed(json.loads(content), rng)
    return _nested(json.dumps(value, indent=rng.choice((None, 1))), rng).encode()


def of_yaml(content: bytes, rng: random.Random) -> bytes:
    """A change of the structure, of the bytes, or something that only YAML has."""
    chance = rng.random()
    if chance < 0.25:
        return of_bytes(content, rng)
    if chance < 0.5:
        lines = content.decode().split("\n")
        at = rng.randrange(len(lines))
        key = lines[at].partition(":")[0] or "a"
        lines[at] = rng.choice((f"{key}: {{tag}}", "{tag}")).replace("{tag}", rng.choice(TAGS))
        return "\n".join(lines).encode()
    if chance < 0.55:
        return _laughs(rng) + content
    value = _changed(yaml.safe_load(content), rng)
    try:
        text = yaml.safe_dump(value, sort_keys=False, default_flow_style=rng.choice((None, True)))
    except (ValueError, yaml.YAMLError):  # an integer of 4,000 digits is fine, half of a surrogate pair is not
        return of_bytes(content, rng)
    return _nested(text, rng).encode(errors="replace")


def _laughs(rng: random.Random) -> bytes:
    """A few lines that stand for billions of values, as lists or merged mappings."""
    wide, high = rng.choice(((10, 10), (2, 60), (50, 3)))
    if rng.random() < 0.5:
        lines = ["l0: &l0 [lol]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * wide)}]" for i in range(1, high))]
    else:
        merged = ", ".join(["*m{}"] * wide)
        lines = [
            "m0: &m0 {a: 1}",
            *(f"m{i}: &m{i} {{<<: [{merged.replace('{}', str(i - 1))}]}}" for i in range(1, high)),
        ]
    return "\n".join([*lines, ""]).encode()


def of_lines(content: bytes, rng: random.Random) -> bytes:
    """One line of JSON changed, or the bytes of all."""
    if rng.random() < 0.4:
        return of_bytes(content, rng)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = of_json(lines[at], rng)
    except ValueError:  # the empty one behind the last
        lines[at] = rng.choice((b"3", b"[]", b"null", b'"x"', b"\xff", b"{}", b"[" * 50_000))
    return b"\n".join(lines)


def of_text(content: bytes, rng: random.Random) -> bytes:
    """Words and lines changed."""
    if rng.random() < 0.5:
        return of_bytes(content, rng)
    words = re.split(rb"(\s+|=)", content)
    for _ in range(rng.choice((1, 2, 5))):
        odd = [
            str(rng.choice(VALUES)).encode(errors="replace")[:6000],
            rng.choice(words),
            b"",
            b"\n",
            b"\xa0",
            b"\x85",
            b"=",
        ]
        words[rng.randrange(len(words))] = rng.choice(odd)
    return b"".join(words)


def _changed(value: Any, rng: random.Random) -> Any:
    """The structure with one to three values in it replaced, taken out, doubled, or nested deep."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places or rng.random() < 0.02:
            return deepcopy(rng.choice([*VALUES, DEEP]))
        container, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice([*PATHS[:6], "unknown", "name", "__class__"])] = container[key]
            case 1:
                container *= 2
            case 2:
                container[key] = DEEP
            case 3:
                other, at = rng.choice(places)
                container[key] = json.loads(json.dumps(other[at])) if at in _keys(other) else None
            case 4:
                container[key] = [container[key]]
            case _:
                container[key] = deepcopy(rng.choice(VALUES))  # the next change may be made in it
    return value


def _places(value: Any) -> Any:
    for key in _keys(value):
        yield value, key
        yield from _places(value[key])


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _nested(text: str, rng: random.Random) -> str:
    depth = rng.choice((20, 400, 3000, 20_000))
    nest = rng.choice((("[", "]"), ('{"a": ', "}"))) if depth < 5000 else ("[", "]")
    deep = nest[0] * depth + "1" + nest[1] * depth
    return text.replace(f'"{DEEP}"', deep).replace(f"'{DEEP}'", deep).replace(DEEP, deep)
