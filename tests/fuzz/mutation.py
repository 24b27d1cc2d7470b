"""Corruption of bytes and of JSON, as it may occur in external files.

Every choice is a call of `below`, a function from n to a number from 0 to n − 1. Hypothesis draws
these numbers, in tests and from the bytes of a fuzzer.
"""

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

from pipeline.storage import serialization

Below = Callable[[int], int]
Mutate = Callable[[Below, bytes], bytes]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"65536", b"2147483648", b"1000000000000000000"]
_NUMBERS += [b"9" * 30, b"9" * 400, b"9" * 5000]
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_PIECES = [b"\x00" * 64, b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n\n", b"\t\t", b"\\"]
_PIECES += [b'"', b'"\\ud800"', b"{", b"}", b"]" * 20, b"[" * 30, b"[" * 3000, b'{"a":' * 400]
_PIECES += [b"(" * 600, b"- " * 600, b"-" * 4000, b" " * 3000, b"\n" * 3000, b"../../../"]
_PIECES += [b"&a [*a]", b"!!python/object/apply:os.getcwd []"]
# JSON values as text, because `json.dumps` cannot write all of them.
_TEXTS = ("", "x", "two\nlines", "\ud800", "\0", "../up", "/etc/passwd", "n" * 400)
_VALUES = ["null", "true", *map(json.dumps, _TEXTS)]
_VALUES += ["[]", "{}", "[[]]", "[null]", "[{}]", '["x",1]', "0", "-1", "1", "2.5", "255", "65536"]
_VALUES += [str(2**31), str(2**63), str(10**12), str(10**30), "9" * 400, "9" * 5000]
_VALUES += ["NaN", "Infinity", "1e-320", "1e308", "1e999"]
_VALUES += ["[" * depth + "1" + "]" * depth for depth in (60, 300, 900, 5000)]
_VALUES += ['{"a":' * 250 + "1" + "}" * 250]
_PLACEHOLDER = re.compile(r'"@(\d+)@"')
# Maximum number of bytes of a short piece that is repeated.
_MOST = 2**20


def _change(below: Below, content: bytes) -> bytes:
    """Makes one change somewhere in the bytes."""
    place = below(len(content) + 1)
    before, after = content[:place], content[place:]
    match below(9):
        case 0:
            return before + bytes([below(256)]) + after[1:]
        case 1:
            return before
        case 2:
            return before + after[1 + below(32) :]
        case 3:
            return before + after[: 1 + below(64)] + after
        case 4:
            return before + _PIECES[below(len(_PIECES))] + after
        case 5:
            width = (2, 4, 8)[below(3)]
            number = _INTEGERS[below(len(_INTEGERS))] % 2 ** (8 * width)
            return before + number.to_bytes(width, "little") + after[width:]
        case 6 if numbers := list(_NUMBER.finditer(content)):
            number = numbers[below(len(numbers))]
            value = _NUMBERS[below(len(_NUMBERS))]
            return content[: number.start()] + value + content[number.end() :]
        case 7:
            # A file with many copies of a short piece may need much more memory or time to read.
            piece = after[: 1 + below(8)]
            return before + piece * (_MOST // max(1, len(piece)) >> 2 * below(8)) + after
    lines = content.split(b"\n")
    line = below(len(lines))
    return b"\n".join([*lines[:line], *lines[line + 1 :], *(lines[line : line + 1] * below(3))])


def mutate_bytes(below: Below, content: bytes) -> bytes:
    """Makes one to four changes in the bytes."""
    for _ in range(1 + below(4)):
        content = _change(below, content)
    return content


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Returns every pair of a container and a key in a JSON value, at any depth."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            items += [(value, key), *_items(value[key])]
    return items


def _change_value(below: Below, root: list[Any]) -> None:
    """Changes one item in a JSON value, which is the only element of `root`."""
    items = _items(root)
    container, key = items[below(len(items))]
    other, other_key = items[below(len(items))]
    kind = below(8)
    if kind == 0 and container is not root:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"@{below(len(_VALUES))}@"] = container[key]
    elif kind == 2:
        container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 3:
        container[key] = [container[key]] * 2
    else:
        container[key] = f"@{below(len(_VALUES))}@"


def mutate_json(below: Below, content: bytes) -> bytes:
    """Changes values of a JSON file, or its bytes."""
    if below(4) == 0:
        return mutate_bytes(below, content)
    root = [json.loads(content)]
    for _ in range(1 + below(3)):
        _change_value(below, root)
        root = json.loads(json.dumps(root))
    return _PLACEHOLDER.sub(_wrong_value, json.dumps(root[0])).encode()


def _wrong_value(match: re.Match[str]) -> str:
    value = _VALUES[int(match[1])]
    is_key = match.string[match.end() :].startswith(":")
    return json.dumps(value) if is_key and not value.startswith('"') else value


def mutate_json_lines(below: Below, content: bytes) -> bytes:
    """Changes a line of a JSON lines file, or its bytes."""
    if below(4) == 0:
        return mutate_bytes(below, content)
    lines = content.splitlines()
    index = below(len(lines))
    lines[index] = mutate_json(below, lines[index])
    return b"\n".join(lines) + b"\n"


def mutate_gzip(below: Below, content: bytes) -> bytes:
    """Changes the text before compression, or the compressed bytes."""
    if below(2):
        return mutate_bytes(below, content)
    return gzip.compress(mutate_json_lines(below, gzip.decompress(content)), mtime=0)


def mutate_records(below: Below, content: bytes) -> bytes:
    """Changes a record of a shard and writes a valid frame for it, or changes the file's bytes."""
    kind = below(4)
    if kind == 0:
        return mutate_bytes(below, content)
    rows, position = [], 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        rows.append(content[position + 12 : position + 12 + length])
        position += 16 + length
    index = below(len(rows))
    change = _change_features if kind > 1 else mutate_bytes
    rows[index] = change(below, rows[index])
    return b"".join(map(serialization.frame_record, rows))


def _change_features(below: Below, record: bytes) -> bytes:
    features = serialization.decode_example(record)
    for _ in range(1 + below(2)):
        names = sorted(features)
        name, other = names[below(len(names))], names[below(len(names))]
        value = features.pop(name)
        match below(6):
            case 0:
                features["other"] = b""
            case 1:
                features[name] = features.get(other, b"")
            case 2:
                features[name] = value * (2 + below(40))
            case _:
                features[name] = mutate_bytes(below, value)
    return serialization.encode_example(features)
