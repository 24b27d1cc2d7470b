"""Settings: fields of frozen dataclasses that declare their default, range and help once.

Flags, `--help`, range checks, run configurations and the README's tables are made from these.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Self

from pipeline.base import hub_id
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.hub_id import HubModel
from pipeline.base.location import Location

_DECLARATION = "declaration"


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a setting's field declares besides its default.

    A range and choices hold for each item of a tuple.

    Attributes:
        help: one sentence on what it does, for `--help`.
        low: the least value; None without a bound.
        high: the largest value; None without a bound.
        choices: the only values; None where others are allowed.
        decides_output: whether the run configuration on disk holds it, so that a run with
            another value needs another output directory.
        omit_default: whether the run configuration leaves out the default value, so that
            directories from before the setting existed are still recognised.
        parse: turns text into the value, or raises an `InputError` without a subject.
        aliases: other names of its flag.
        hub_files: of a location that may be a model of the hub, which files it is needed for:
            `hub_id.MODEL` or `hub_id.TOKENIZER`. Such a model is a `HubModel` until
            `pipeline.hub.models.downloaded` puts its directory in its place.
    """

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    decides_output: bool = True
    omit_default: bool = False
    parse: Callable[[str], Any] | None = None
    aliases: tuple[str, ...] = ()
    hub_files: str | None = None


def setting(default: Any, help: str, **declared: Any) -> Any:
    """Returns a dataclass field that is a setting.

    Args:
        default: `dataclasses.MISSING` for a required setting. A mapping is copied.
        help: see `Declaration`.
        **declared: other attributes of `Declaration`.
    """
    metadata = {_DECLARATION: Declaration(help, **declared)}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# A setting that leaves the output as it is, or that the run configuration holds in another form.
unrecorded = functools.partial(setting, decides_output=False)


def declaration_of(field: dataclasses.Field) -> Declaration | None:
    """Returns what a field declares; None for a field that is no setting."""
    return field.metadata.get(_DECLARATION)


def value_type(field: dataclasses.Field) -> Any:
    """Returns the type of a field's values, without None."""
    is_union = isinstance(field.type, types.UnionType)
    kinds = typing.get_args(field.type) if is_union else (field.type,)
    return next(kind for kind in kinds if kind is not type(None))


def default_value(field: dataclasses.Field) -> Any:
    """Returns a field's default; None for a required one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def is_required(field: dataclasses.Field) -> bool:
    """Returns whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the config dataclasses: parses text and locations, and checks declared ranges.

    A subclass with a `__post_init__` of its own calls this one first.

    Raises:
        InputError: a value out of its range, or none of the choices; the subject is the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = read_value(field, getattr(self, field.name))
            with naming_setting(field.name):
                object.__setattr__(self, field.name, _with_locations(field, value))

    def absolute(self) -> Self:
        """Returns these settings with absolute locations: worker processes begin elsewhere."""
        # As text, so that the setting of each stays known.
        changes = {
            field.name: str(value.absolute())
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Location)
        }
        return dataclasses.replace(self, **changes)

    def hub_models(self) -> dict[str, dict[str, str]]:
        """Returns the id and the commit of each model that lies in the hub's cache.

        By field name, those of nested settings included.
        """
        found = {}
        for field in dataclasses.fields(self):
            value, declaration = getattr(self, field.name), declaration_of(field)
            if isinstance(value, Settings):
                found |= value.hub_models()
            elif declaration is not None and declaration.hub_files and isinstance(value, Location):
                snapshot = hub_id.snapshot_of(value)
                if snapshot is not None:
                    found[field.name] = {"id": snapshot.id, "commit": snapshot.revision}
        return found

    def decisive(self) -> dict[str, Any]:
        """Returns the settings that the run configuration holds, by field name."""
        found = {}
        for field in dataclasses.fields(self):
            declaration, value = declaration_of(field), getattr(self, field.name)
            if declaration is None or not declaration.decides_output:
                continue
            if not (declaration.omit_default and value == default_value(field)):
                found[field.name] = value
        return found


def _with_locations(field: dataclasses.Field, value: Any) -> Any:
    """Returns a setting's value with text parsed where it names locations."""
    if value is None:
        return None
    kind, declaration = value_type(field), declaration_of(field)
    is_model = declaration is not None and declaration.hub_files is not None
    parse = parse_model if is_model else Location.parse
    if kind is Location:
        return parse(value, field.name)
    if typing.get_args(kind)[:1] == (Location,):
        return tuple(parse(path, field.name) for path in value)
    return value


def parse_model(value: Any, setting: str | None = None) -> Location | HubModel:
    """Returns the directory or file, or the model of the hub, that a user's text names.

    Arguments and errors are those of `Location.parse`; a parsed value stays as it is.
    """
    if isinstance(value, HubModel):
        return value
    model = hub_id.parse(value, setting) if isinstance(value, str) else None
    return Location.parse(value, setting) if model is None else model


def read_value(field: dataclasses.Field, value: Any) -> Any:
    """Returns a setting's value, parsed where it is text of a field that parses text.

    Raises:
        InputError: it cannot be parsed, or is not in the declared range.
    """
    declaration = declaration_of(field)
    if declaration is None or value is None:
        return value
    if declaration.parse is not None and isinstance(value, str):
        with naming_setting(field.name):
            value = declaration.parse(value)
    items = value if isinstance(value, tuple) else (value,)
    for item in items:
        _check(field, declaration, item)
    return value


def _check(field: dataclasses.Field, declaration: Declaration, value: Any) -> None:
    subject, low, high = Setting(field.name), declaration.low, declaration.high
    if declaration.choices is not None and value not in declaration.choices:
        raise InputError(subject, f"one of {', '.join(declaration.choices)}", value)
    if value_type(field) in (int, float) and not isinstance(value, numbers.Real):
        raise InputError(subject, "a number", repr(value))
    if not isinstance(value, numbers.Real):
        return
    if not math.isfinite(value):
        raise InputError(subject, "a finite number", value)
    if low is not None and value < low:
        raise InputError(subject, f"at least {low}", value)
    if high is not None and value > high:
        raise InputError(subject, f"at most {high}", value)


def parse_words(text: str) -> tuple[str, ...]:
    """Parses words separated by commas; spaces around them do not count."""
    words = (word.strip() for word in text.split(","))
    return tuple(word for word in words if word)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parses numbers separated by commas.

    Raises:
        InputError: a part is no number.
    """
    try:
        parsed = tuple(float(part) for part in text.split(","))
    except ValueError:
        parsed = (math.nan,)
    if not all(map(math.isfinite, parsed)):
        raise InputError(None, "numbers such as 1,2", f"{text!r}")
    return parsed


def parse_counts(text: str) -> tuple[int, ...]:
    """Parses integers above 0 separated by commas, and returns each once, ascending.

    Raises:
        InputError: a part is no such number.
    """
    try:
        counts = {int(part) for part in text.split(",")}
    except ValueError:
        counts = set()
    if not counts or min(counts) < 1:
        raise InputError(None, "integers above 0 such as 1,5", f"{text!r}")
    return tuple(sorted(counts))
