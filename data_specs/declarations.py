"""Declarations: YAML files that become frozen msgspec structs; keys and types are checked."""

import os
import pathlib
import re
import reprlib
from typing import Annotated, Any

import msgspec

# A list of at least one word.
Words = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]

# A declaration is a page, a mixture of a thousand corpora some dozens; more would take long.
_MAX_BYTES = 2**17
# Of a path, and of each part of it, in bytes.
_MAX_PATH, _MAX_NAME = 4096, 255
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200
# A message of msgspec: the fact, and the path of the value that it is about.
_REFUSAL = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?", re.DOTALL)


def shown(value: Any) -> str:
    """Returns a value as one line of limited length, for messages."""
    return _SHOWN.repr(value)


def expect_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Checks a word.

    Raises:
        ValueError: it is not among the allowed ones; names the key.
    """
    if value not in allowed:
        raise ValueError(f"{key}: expected one of {', '.join(allowed)}, received {shown(value)}")


def expect_path(key: str, value: str) -> None:
    """Checks that a text can name a file, a folder or a glob.

    Raises:
        ValueError: it is longer than any system allows; names the key.
    """
    content = value.encode("utf-8", "surrogatepass")
    if len(content) > _MAX_PATH or max(map(len, content.split(b"/"))) > _MAX_NAME:
        raise ValueError(f"{key}: expected a path, received {shown(value)}")


def known_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the declarations in a folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def find_declaration(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a declaration, by its name in a folder or the path of a `.yaml` file.

    Raises:
        ValueError: there is no such file.
    """
    names = known_names(folder)
    # A name may be longer than any file's.
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        return pathlib.Path(name)
    if name not in names:
        message = f"expected one of {', '.join(names)}, or a .yaml file, received {shown(name)}"
        raise ValueError(message)
    return folder / f"{name}.yaml"


def load_mapping(path: Any) -> dict[str, Any]:
    """Reads a YAML file of keys and values.

    Args:
        path: the file: a `pathlib.Path`, or whatever else has its `read_text`.

    Raises:
        ValueError: it cannot be read, or is not a mapping; names the file.
    """
    # Tools that read no declaration run where PyYAML is not installed.
    import yaml

    from data_specs.yaml_loader import Loader

    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES} bytes, received {size}")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # ValueError: an invalid number or date, or a UnicodeDecodeError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, received {type(content).__name__}")
    return content


def build(kind: type, values: Any, where: str) -> Any:
    """Returns a struct of a class, made of a mapping; `where` is its source, for messages.

    Raises:
        ValueError: a key or a value is invalid; names the source and the key.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {_describe(str(error), kind)}") from error
    except UnicodeEncodeError as error:
        received = shown(error.object)
        raise ValueError(f"{where}: expected valid Unicode, received {received}") from error


def _describe(refusal: str, kind: type) -> str:
    fact, key = _REFUSAL.fullmatch(refusal).groups()
    # Backticks mark settings in our own messages.
    fact = " ".join(fact.replace("`", "'").split())[:300]
    if "unknown field" in fact and not key:
        fact = f"{fact}, expected fields of {', '.join(kind.__struct_fields__)}"
    return f"{key}: {fact}" if key else fact
