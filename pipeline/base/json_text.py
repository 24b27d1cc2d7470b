"""Reads, checks and writes JSON, with limits for nesting and for the length of numbers."""

import contextlib
import json
import re
from typing import Any, TypeVar

import msgspec

from pipeline.base.errors import InputError

Kind = TypeVar("Kind")
# Phrases that describe strings of a pattern in error messages, keyed by msgspec's type name.
_PHRASES: dict[str, str] = {}


def matching(pattern: str, phrase: str) -> msgspec.Meta:
    """Returns a msgspec constraint: the whole string must match `pattern`.

    Error messages describe such a string as `phrase`.

    Example:
        `Annotated[str, matching("[0-9]+", "digits")]`
    """
    whole = rf"^(?:{pattern})\Z"
    _PHRASES[f"str matching regex {whole!r}"] = phrase
    return msgspec.Meta(pattern=whole)


# Far below Python's recursion limit, which depends on the depth of the caller.
MAX_DEPTH = 64
# Every integer with this many digits can be converted to a float.
MAX_DIGITS = 300
_MAX_SHOWN_CHARACTERS = 200


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        expected = f"expected numbers of at most {MAX_DIGITS} digits"
        raise ValueError(f"{expected}, received a number of {len(digits)} digits")
    return int(digits)


def format_value(value: Any) -> str:
    """Returns a value as one line of limited length, for messages."""
    text = repr(value)
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]}…"


def dump(value: Any) -> bytes:
    """Returns JSON with sorted keys and a final newline. Equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


_DECODER = json.JSONDecoder(parse_int=_parse_integer)


def load(content: bytes | str) -> Any:
    """Reads a JSON value.

    Args:
        content: text, or bytes in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: the content is not UTF-8, not JSON, is nested too deeply, or has a number of
            too many digits.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    with contextlib.suppress(RecursionError):
        value = _DECODER.decode(text)
        if not _is_deeper(value, MAX_DEPTH):
            return value
    raise ValueError(f"expected at most {MAX_DEPTH} levels of brackets, received more")


def convert(value: Any, kind: type[Kind], where: object) -> Kind:
    """Converts a JSON value to a typed object, and checks types and bounds.

    Args:
        value: a value that `load` returned.
        kind: a dataclass or a `msgspec.Struct`. Its annotations state types and bounds.
        where: the source of the value, for example a location. It is the subject of errors.

    Raises:
        InputError: a field is missing, unknown or invalid. The subject ends in the field's path.

    Example:
        `seed` must be at least 0. For {"seed": -1} in manifest.json, the error has the subject
        "manifest.json: seed", the expected value "int >= 0" and the received value "-1".
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # For example "Expected `int` >= 0 - at `$.splits[...][0].bytes`".
        problem, _, field_path = str(error).replace("`", "").partition(" - at ")
        field_path = field_path.rpartition("$")[2].removeprefix(".")
        expected, received = None, format_value(problem)[1:-1]
        if problem.startswith("Expected "):
            expected, _, actual_type = problem.removeprefix("Expected ").partition(", got ")
            expected = _PHRASES.get(expected, expected)
            received = _shown_at(value, field_path, actual_type or None)
        input_error = InputError(where, expected, received)
        if field_path:
            input_error.subject = f"{input_error.subject}: {field_path}"
        raise input_error from error
    except UnicodeEncodeError as error:
        # msgspec encodes an unknown key as UTF-8 to compare it with the fields' names.
        raise InputError(where, "text that UTF-8 can encode", format_value(error.object)) from error


def _shown_at(value: Any, field_path: str, default: str | None) -> str | None:
    """Returns the shown value at a path; `default` if msgspec's path omits a key as `[...]`."""
    for name, index in re.findall(r"(\w+)|\[(\d+|\.\.\.)\]", field_path):
        if index == "...":
            return default
        value = value[name] if name else value[int(index)]
    return format_value(value)


def _is_deeper(value: Any, levels: int) -> bool:
    """Returns whether brackets are nested more than `levels` deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = [item for item in items if isinstance(item, dict | list)]
    return any(levels == 1 or _is_deeper(item, levels - 1) for item in inner)
