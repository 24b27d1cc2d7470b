"""JSON from outside: no deeper, and with no longer numbers, than what uses it can bear."""

import json
from typing import Any

# Python gives up at some hundreds of levels, wherever it happens to be then.
MAX_DEPTH = 64
# A whole number of more digits has no float.
MAX_DIGITS = 300
_MAX_SHOWN = 200


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(
            f"expected numbers of at most {MAX_DIGITS} digits, received one of {len(digits)}"
        )
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
        ValueError: it is not UTF-8, not JSON, nested too deeply, or has a whole number of
            too many digits.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        value = None
        is_deep = True
    else:
        is_deep = _is_deep(value)
    if is_deep:
        raise ValueError(f"expected at most {MAX_DEPTH} levels of brackets, received more")
    return value


def _is_deep(value: Any) -> bool:
    """Returns whether brackets are nested deeper than they may be."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
