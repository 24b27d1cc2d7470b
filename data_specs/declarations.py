"""Loads YAML declarations as frozen msgspec structs, and checks their keys and types."""

import os
import pathlib
import re
import reprlib
from typing import Annotated, Any

import msgspec

# A list of at least one word.
Words = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]

# Enough for a mixture of about a thousand corpora. Parsing a larger file would take long.
_MAX_BYTES = 2**17
# Maximum lengths of a path and of each of its components, in bytes.
_MAX_PATH, _MAX_NAME = 4096, 255
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200
# A message of msgspec: the problem, and the path of the invalid value.
_MESSAGE = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?", re.DOTALL)


def format_value(value: Any) -> str:
    """Returns a value as one line of limited length, for messages."""
    return _SHOWN.repr(value)


def expect_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Checks that a word is one of the allowed words.

    Raises:
        ValueError: it is not. The message names the key.
    """
    if value not in allowed:
        raise ValueError(
            f"{key}: expected one of {', '.join(allowed)}, received {format_value(value)}"
        )


def expect_path(key: str, value: str) -> None:
    """Checks that a string is short enough to be the path of a file, folder or glob.

    Raises:
        ValueError: the string is longer than any system allows. The message names the key.
    """
    content = value.encode("utf-8", "surrogatepass")
    if len(content) > _MAX_PATH or max(map(len, content.split(b"/"))) > _MAX_NAME:
        raise ValueError(
            f"{key}: path is too long: must be at most {_MAX_PATH:,} bytes, and {_MAX_NAME} bytes "
            f"between slashes; got {format_value(value)}"
        )


def known_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the declarations in a folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def find_declaration(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a declaration.

    Args:
        folder: folder of the known declarations.
        name: name of a known declaration, or path of a `.yaml` file.

    Raises:
        ValueError: there is no such file.
    """
    names = known_names(folder)
    # `isfile` also accepts a string longer than any path.
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        return pathlib.Path(name)
    if name not in names:
        message = (
            f"expected one of {', '.join(names)}, or a .yaml file, received {format_value(name)}"
        )
        raise ValueError(message)
    return folder / f"{name}.yaml"


def load_mapping(path: Any) -> dict[str, Any]:
    """Reads a YAML file of keys and values.

    Args:
        path: path of the file, a `pathlib.Path` or an object with its interface.

    Raises:
        ValueError: the file cannot be read, or is not a mapping. The message names the file.
    """
    # PyYAML is imported here, because tools without declarations must run without it.
    import yaml

    from data_specs.yaml_loader import Loader

    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES} bytes, received {size}")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # An invalid number or date is a ValueError, and so is a UnicodeDecodeError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, received {type(content).__name__}")
    return content


def build(kind: type, values: Any, where: str) -> Any:
    """Converts a mapping to a struct.

    Args:
        kind: class of the struct.
        values: the mapping.
        where: source of the mapping, for messages.

    Raises:
        ValueError: a key or a value is invalid. The message names the source and the key.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_describe(str(error), kind)}") from error
    except UnicodeEncodeError as error:
        received = format_value(error.object)
        raise ValueError(f"{where}: expected valid Unicode, received {received}") from error


def _describe(message: str, kind: type) -> str:
    """Returns a message of msgspec in the form of the project's messages."""
    problem, key = _MESSAGE.fullmatch(message).groups()
    # Backticks mark settings in the project's messages.
    problem = " ".join(problem.replace("`", "'").split())[:300]
    if "unknown field" in problem and not key:
        problem = f"{problem}, expected fields of {', '.join(kind.__struct_fields__)}"
    return f"{key}: {problem}" if key else problem
