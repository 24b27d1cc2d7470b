"""Declarations: YAML files that become frozen dataclasses, keys and types checked."""

import dataclasses
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

# A declaration is a page, a mixture of a thousand corpora some dozens; more would take long.
_MAX_BYTES = 2**17
# Of a path, and of each part of it, in bytes.
_MAX_PATH, _MAX_NAME = 4096, 255
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200
# Decimal, of so many digits that no sum of them is slow.
_WHOLE_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,19})")


class _Loader(yaml.SafeLoader):
    """Plain values only; what stands in one place may not be named in others.

    With such names a page becomes more values than any memory holds, or one that
    contains itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Reads a plain number; those of other bases, of which 1:1:1 has 60, are refused."""
        text = self.construct_scalar(node)
        if _WHOLE_NUMBER.fullmatch(text):
            return int(text)
        if node.tag.endswith(":float") and ":" not in text:
            return self.construct_yaml_float(node)
        raise yaml.constructor.ConstructorError(
            None, None, f"expected a plain number, received {shown(text)}", node.start_mark
        )


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def shown(value: Any) -> str:
    """Returns how a value is written in a message: in one line, and not for ever."""
    return _SHOWN.repr(value)


def expect_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Checks a word.

    Raises:
        ValueError: it is none of the allowed ones; names the key.
    """
    if value not in allowed:
        raise ValueError(f"{key}: expected one of {', '.join(allowed)}, received {shown(value)}")


def known_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the declarations in a folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def find_declaration(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a declaration.

    Args:
        folder: where the known ones lie.
        name: one of theirs, or the path of a `.yaml` file of one's own.

    Raises:
        ValueError: there is none.
    """
    names = known_names(folder)
    # A name may be longer than any file's.
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        return pathlib.Path(name)
    if name not in names:
        raise ValueError(
            f"expected one of {', '.join(names)}, or a .yaml file, received {shown(name)}"
        )
    return folder / f"{name}.yaml"


def load_mapping(path: Any) -> dict[str, Any]:
    """Reads a YAML file of keys and values.

    Args:
        path: the file: a `pathlib.Path`, or whatever else has its `read_text`.

    Raises:
        ValueError: it cannot be read or is something else; names the file.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES} bytes, received {size}")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # Numbers and dates that are none are plain ValueErrors, UnicodeDecodeError is one, too.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, received {type(content).__name__}")
    return content


def text(value: Any) -> str:
    """Returns a value that is text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text, received {shown(value)}")
    return value


def path_text(value: Any) -> str:
    """Returns text that can name a file, a folder or a glob.

    Raises:
        ValueError: it is none, or longer than any system allows.
    """
    content = text(value).encode("utf-8", "surrogatepass")
    if len(content) > _MAX_PATH or max(map(len, content.split(b"/"))) > _MAX_NAME:
        raise ValueError(f"expected a path, received {shown(value)}")
    return value


def words(value: Any) -> tuple[str, ...]:
    """Returns a list of words, of one at least.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError(f"expected a list of words, received {shown(value)}")


def whole_number(value: Any) -> int:
    """Returns a whole number of 64 bits.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise ValueError(f"expected a number, received {shown(value)}")


def number(value: Any) -> float:
    """Returns a number.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"expected a number, received {shown(value)}")


def build(
    kind: type,
    values: Mapping[str, Any],
    where: str,
    *,
    checks: Mapping[str, Callable[[Any], Any]],
) -> Any:
    """Makes a dataclass out of a mapping, checking keys and types.

    Args:
        kind: the dataclass.
        values: its fields.
        where: what they were read from, for messages; empty for a part of a declaration.
        checks: what makes a value of what was read, by key; the others are text.

    Raises:
        ValueError: a key is unknown or missing, or a value is not as it must be; names it.
    """
    prefix = f"{where}: " if where else ""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise ValueError(
            f"{prefix}unknown key {shown(unknown[0])}, expected keys of {', '.join(fields)}"
        )
    needed = [name for name, field in fields.items() if not _has_default(field)]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{prefix}expected the keys {', '.join(needed)}, found no {missing[0]!r}")
    checked = {}
    for key, value in values.items():
        try:
            checked[key] = checks.get(key, text)(value)
        except ValueError as error:
            raise ValueError(f"{prefix}{key}: {error}") from error
    try:
        return kind(**checked)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _has_default(field: dataclasses.Field) -> bool:
    no = dataclasses.MISSING
    return field.default is not no or field.default_factory is not no
