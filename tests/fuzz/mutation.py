"""Bytes and JSON made wrong: what a reader of files from outside may meet.

Every choice is made by `below`, a function from n to a number from 0 to n − 1, so that
hypothesis, a random number generator and a fuzzer that watches coverage drive the same
mutations.
"""

import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.storage import serialization

Below = Callable[[int], int]
Mutate = Callable[[Below, bytes], bytes]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"65536",
    b"2147483648",
    b"1000000000000000000",
    b"9" * 30,
    b"9" * 400,
    b"9" * 5000,
)
_PIECES = (
    b"\x00" * 64,
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n\n",
    b"\t\t",
    b'"',
    b'"\\ud800"',
    b"\\",
    b"{",
    b"}",
    b"]" * 20,
    b"[" * 30,
    b"[" * 3000,
    b'{"a":' * 400,
    b"(" * 600,
    b"- " * 600,
    b"-" * 4000,
    b"&a [*a]",
    b"!!python/object/apply:os.getcwd []",
    b"../../../",
    b" " * 3000,
    b"\n" * 3000,
)
# Of a piece that is repeated, in bytes.
_MOST = 2**20
# Stand for what `json.dumps` would not write.
_DEEP = "@deep@"
_LONG = "@digits@"
_DEEP_TEXT = "[" * 5000 + "]" * 5000


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _shared(depth: int) -> Any:
    value: Any = {"a": "b"}
    for _ in range(depth):
        value = {"a": value}
    return value


_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "two\nlines",
    "\ud800",
    "\0",
    "../up",
    "/etc/passwd",
    "n" * 400,
    [],
    {},
    [[]],
    [None],
    [{}],
    ["x", 1],
    0,
    -1,
    1,
    2.5,
    255,
    65_536,
    2**31,
    2**63,
    10**12,
    10**18,
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    1e-320,
    1e308,
    _nested(60),
    _nested(300),
    _nested(900),
    _shared(250),
    _DEEP,
    _LONG,
)


def _step(below: Below, content: bytes) -> bytes:
    """Makes one change somewhere in the bytes."""
    size = len(content)
    place = below(size + 1)
    kind = below(10)
    if kind == 9:
        # A small piece again and again: what takes memory or time beyond what it is long.
        piece = content[place : place + 1 + below(8)]
        times = _MOST // max(1, len(piece)) >> 2 * below(8)
        return content[:place] + piece * times + content[place:]
    if kind == 0 and place < size:
        return content[:place] + bytes([content[place] ^ 1 << below(8)]) + content[place + 1 :]
    if kind == 1:
        return content[:place] + bytes([below(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place]
    if kind == 3:
        return content[:place] + content[place + 1 + below(32) :]
    if kind == 4:
        end = place + 1 + below(64)
        return content[:end] + content[place:end] + content[end:]
    if kind == 5:
        return content[:place] + _PIECES[below(len(_PIECES))] + content[place:]
    if kind == 6:
        found = list(_NUMBER.finditer(content))
        if found:
            match = found[below(len(found))]
            number = _NUMBERS[below(len(_NUMBERS))]
            return content[: match.start()] + number + content[match.end() :]
    if kind == 7:
        width = (2, 4, 8)[below(3)]
        number = _INTEGERS[below(len(_INTEGERS))] % 2 ** (8 * width)
        return content[:place] + number.to_bytes(width, "little") + content[place + width :]
    lines = content.split(b"\n")
    line = below(len(lines))
    return b"\n".join([*lines[:line], *lines[line + 1 :], *(lines[line : line + 1] * below(3))])


def mutate_bytes(below: Below, content: bytes) -> bytes:
    """Makes one to four changes."""
    for _ in range(1 + below(4)):
        content = _step(below, content)
    return content


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            keys: Sequence[Any] = list(inner)
        elif isinstance(inner, list):
            keys = range(len(inner))
        else:
            continue
        found += [(inner, key) for key in keys]
        left += [inner[key] for key in keys]
    return found


def _copy(value: Any) -> Any:
    """Returns a value that is no part of another."""
    try:
        return json.loads(json.dumps(value))
    except (RecursionError, ValueError):
        return _DEEP


def change_value(below: Below, value: Any) -> Any:
    """Changes a JSON value in one to three places; the value itself is changed, too."""
    root = [value]
    for _ in range(1 + below(3)):
        places = _places(root)
        container, key = places[below(len(places))]
        kind = below(8)
        if kind == 0 and container is not root:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[_text(below)] = _copy(container[key])
        elif kind == 2:
            other, there = places[below(len(places))]
            container[key] = _copy(other[there])
        elif kind == 3:
            container[key] = [_copy(container[key]), container[key]]
        else:
            container[key] = _copy(_VALUES[below(len(_VALUES))])
    return root[0]


def _text(below: Below) -> str:
    texts = [value for value in _VALUES if isinstance(value, str)]
    return texts[below(len(texts))]


def dump(value: Any) -> bytes:
    """Returns JSON, with what stands for endless nesting and endless numbers put in."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = _DEEP_TEXT
    text = text.replace(json.dumps(_DEEP), _DEEP_TEXT).replace(json.dumps(_LONG), "9" * 5000)
    return text.encode()


def mutate_json(below: Below, content: bytes) -> bytes:
    """Changes values of a JSON file, or its bytes."""
    if below(4) == 0:
        return mutate_bytes(below, content)
    return dump(change_value(below, json.loads(content)))


def mutate_json_lines(below: Below, content: bytes) -> bytes:
    """Changes a line of JSON lines, or their bytes."""
    lines = content.splitlines()
    if below(4) == 0:
        return mutate_bytes(below, content)
    place = below(len(lines))
    lines[place] = mutate_json(below, lines[place])
    return b"\n".join(lines) + b"\n"


def mutate_gzip(below: Below, content: bytes) -> bytes:
    """Changes what is compressed, or the compressed bytes."""
    if below(2):
        return mutate_bytes(below, content)
    inner = mutate_json_lines(below, gzip.decompress(content))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(inner)
    return packed.getvalue()


def _framed(records_of_file: list[bytes]) -> bytes:
    return b"".join(map(serialization.frame_record, records_of_file))


def mutate_records(below: Below, content: bytes) -> bytes:
    """Changes a record of a shard and frames it anew, or the file's bytes."""
    kind = below(4)
    if kind == 0:
        return mutate_bytes(below, content)
    rows = []
    # The untouched file is right.
    position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        rows.append(content[position + 12 : position + 12 + length])
        position += 16 + length
    place = below(len(rows))
    if kind == 1:
        rows[place] = mutate_bytes(below, rows[place])
        return _framed(rows)
    features = serialization.decode_example(rows[place])
    for _ in range(1 + below(2)):
        names = sorted(features)
        name = names[below(len(names))]
        change = below(6)
        if change == 0:
            del features[name]
            features["other"] = b""
        elif change == 1:
            features[name] = features[names[below(len(names))]]
        elif change == 2:
            features[name] = b""
        elif change == 3:
            features[name] = features[name] * (2 + below(40))
        else:
            features[name] = mutate_bytes(below, features[name])
    rows[place] = serialization.encode_example(features)
    return _framed(rows)
