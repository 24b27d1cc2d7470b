"""Settings: fields of frozen dataclasses that declare their default, range and help once.

Flags, `--help`, range checks, the run configuration on disk and the README's tables are all
made from these declarations.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location

_DECLARATION = "declaration"


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a setting's field declares besides its default.

    Attributes:
        help: one sentence on what it does, for `--help`.
        low: the least value; None without a bound.
        high: the largest value; None without a bound.
        choices: the only values; None where others are allowed.
        decides_output: whether the run configuration on disk holds it, so that a run with
            another value needs another output directory.
        parse: turns a flag's text into the value; None where the field's type says it.
        aliases: other names of its flag.
    """

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    decides_output: bool = True
    parse: Callable[[str], Any] | None = None
    aliases: tuple[str, ...] = ()


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    decides_output: bool = True,
    parse: Callable[[str], Any] | None = None,
    aliases: Sequence[str] = (),
) -> Any:
    """Returns a dataclass field that is a setting; see `Declaration`.

    Args:
        default: the value unless given; `dataclasses.MISSING` for a required setting. A
            mapping is copied.
        help: see `Declaration`, as for the others.
    """
    declaration = Declaration(
        help,
        low,
        high,
        None if choices is None else tuple(choices),
        decides_output,
        parse,
        tuple(aliases),
    )
    metadata = {_DECLARATION: declaration}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declarations(config: Any) -> dict[str, Declaration]:
    """Returns the declarations of a config dataclass's settings, by field name."""
    return {
        field.name: field.metadata[_DECLARATION]
        for field in dataclasses.fields(config)
        if _DECLARATION in field.metadata
    }


def value_type(field: dataclasses.Field) -> Any:
    """Returns the type of a field's values, without None."""
    kinds = (
        typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    )
    return next(kind for kind in kinds if kind is not type(None))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the config dataclasses: reads locations, and checks what fields declare.

    A subclass with a `__post_init__` of its own calls this one first.

    Raises:
        InputError: a value out of its range, or none of the choices; the subject is the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if value_type(field) is Location and not isinstance(value, Location):
                with naming_setting(field.name):
                    value = Location.parse(value, field.name)
                object.__setattr__(self, field.name, value)
            if _DECLARATION in field.metadata:
                _check(field.name, field.metadata[_DECLARATION], value)

    def decisive(self) -> dict[str, Any]:
        """Returns the settings that decide the output, by field name."""
        return {
            name: getattr(self, name)
            for name, declaration in declarations(self).items()
            if declaration.decides_output
        }


def _check(name: str, declaration: Declaration, value: Any) -> None:
    low, high = declaration.low, declaration.high
    if declaration.choices is not None and value not in declaration.choices:
        raise InputError(Setting(name), f"one of {', '.join(declaration.choices)}", value)
    if not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(Setting(name), "a finite number", value)
    if low is not None and value < low:
        raise InputError(Setting(name), f"at least {low:g}", value)
    if high is not None and value > high:
        raise InputError(Setting(name), f"at most {high:g}", value)
