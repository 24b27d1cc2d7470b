"""JSON from outside: no deeper, and with no longer numbers, than what uses it can bear."""

import contextlib
import json
import re
from typing import Any, TypeVar

import msgspec

from pipeline.base.errors import InputError

Kind = TypeVar("Kind")
# How a pattern's texts are called in messages.
_PHRASES: dict[str, str] = {}


def matching(pattern: str, phrase: str) -> msgspec.Meta:
    """Returns a constraint of whole texts, such as `Annotated[str, matching("[0-9]+", "digits")]`.

    Messages call such a text `phrase`.
    """
    whole = rf"^(?:{pattern})\Z"
    _PHRASES[f"str matching regex {whole!r}"] = phrase
    return msgspec.Meta(pattern=whole)


# Python gives up at some hundreds of levels, wherever it happens to be then.
MAX_DEPTH = 64
# A whole number of more digits has no float.
MAX_DIGITS = 300
_MAX_SHOWN = 200


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        expected = f"expected numbers of at most {MAX_DIGITS} digits"
        raise ValueError(f"{expected}, received one of {len(digits)}")
    return int(digits)


def shown(value: Any) -> str:
    """Returns how a value is written in a message: in one line, and not for ever."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def dump(value: Any) -> bytes:
    """Returns JSON with sorted keys and a final newline: equal values, equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


_DECODER = json.JSONDecoder(parse_int=_whole_number)


def load(content: bytes | str) -> Any:
    """Reads a JSON value.

    Args:
        content: UTF-8, with or without a byte order mark, or text.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, or has too long a number.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    with contextlib.suppress(RecursionError):
        value = _DECODER.decode(text)
        if not _is_deeper(value, MAX_DEPTH):
            return value
    raise ValueError(f"expected at most {MAX_DEPTH} levels of brackets, received more")


def convert(value: Any, kind: type[Kind], where: object) -> Kind:
    """Makes an object of a JSON value, checking types and bounds.

    Args:
        value: as `load` returns it.
        kind: a dataclass or a `msgspec.Struct` whose annotations are the checks.
        where: what was read, such as a location; the subject of errors.

    Raises:
        InputError: a field is missing, unknown or invalid; its subject ends in the field's path.

    Example:
        of {"seed": -1}, whose `seed` must be at least 0, the error's subject is
        "manifest.json: seed", it expected "int >= 0" and received "-1".
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # Such as "Expected `int` >= 0 - at `$.splits[...][0].bytes`".
        problem, _, place = str(error).replace("`", "").partition(" - at ")
        place = place.rpartition("$")[2].removeprefix(".")
        expected, received = None, shown(problem)[1:-1]
        if problem.startswith("Expected "):
            expected, _, got = problem.removeprefix("Expected ").partition(", got ")
            expected = _PHRASES.get(expected, expected)
            received = _shown_at(value, place, got or None)
        refusal = InputError(where, expected, received)
        if place:
            refusal.subject = f"{refusal.subject}: {place}"
        raise refusal from error
    except UnicodeEncodeError as error:
        # Of a key that no field has: msgspec compares keys as UTF-8.
        raise InputError(where, "text that UTF-8 can encode", shown(error.object)) from error


def _shown_at(value: Any, place: str, otherwise: str | None) -> str | None:
    """Returns how the value at a path is shown; `otherwise` where the path leaves keys open."""
    for name, index in re.findall(r"(\w+)|\[(\d+|\.\.\.)\]", place):
        if index == "...":
            return otherwise
        value = value[name] if name else value[int(index)]
    return shown(value)


def _is_deeper(value: Any, levels: int) -> bool:
    """Returns whether brackets are nested in more than so many levels."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = [item for item in items if isinstance(item, dict | list)]
    return any(levels == 1 or _is_deeper(item, levels - 1) for item in inner)
