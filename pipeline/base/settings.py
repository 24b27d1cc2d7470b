"""Settings: fields of frozen dataclasses that declare their default, range and help text.

Flags, `--help`, range checks, run configurations and the README's tables are generated from
these declarations.
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
    """The declaration of a setting, except for its default.

    The range and the choices apply to each item of a tuple.

    Attributes:
        help: effect, units and constraints of the setting, for `--help`.
        low: smallest value; None for no bound.
        high: largest value; None for no bound.
        choices: allowed values; None if any value is allowed.
        decides_output: whether the setting is part of the run configuration on disk. A run with
            another value then needs another output directory.
        omit_default: whether the run configuration leaves out the default value. Directories
            from before the setting existed are then still recognized.
        parse: turns text into the value, or raises an `InputError` without a subject.
        aliases: other names of the flag.
        hub_files: for a location that may be a model of the hub, the files to download:
            `hub_id.MODEL` or `hub_id.TOKENIZER`. The value is a `HubModel` until
            `pipeline.hub.models.with_downloaded_models` replaces it by the downloaded directory.
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


# A setting that does not change the output, or that the run configuration stores in another form.
unrecorded = functools.partial(setting, decides_output=False)


def declaration_of(field: dataclasses.Field) -> Declaration | None:
    """Returns the declaration of a field; None for a field that is not a setting."""
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

    A subclass that defines `__post_init__` calls this one first.

    Raises:
        InputError: a value is out of range or not one of the choices. The subject is the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = read_value(field, getattr(self, field.name))
            with naming_setting(field.name):
                object.__setattr__(self, field.name, _with_locations(field, value))

    def absolute(self) -> Self:
        """Returns these settings with absolute locations, for workers in other directories."""
        # Parsing the text again records the setting in each location.
        changes = {
            field.name: str(value.absolute())
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Location)
        }
        return dataclasses.replace(self, **changes)

    def hub_models(self) -> dict[str, dict[str, str]]:
        """Returns the id and the commit of each setting's model in the hub's cache.

        The keys are names of fields, including those of nested settings.
        """
        models = {}
        for field in dataclasses.fields(self):
            value, declaration = getattr(self, field.name), declaration_of(field)
            if isinstance(value, Settings):
                models |= value.hub_models()
            elif declaration is not None and declaration.hub_files and isinstance(value, Location):
                snapshot = hub_id.snapshot_of(value)
                if snapshot is not None:
                    models[field.name] = {"id": snapshot.id, "commit": snapshot.revision}
        return models

    def output_settings(self) -> dict[str, Any]:
        """Returns the settings of the run configuration, keyed by field name."""
        values = {}
        for field in dataclasses.fields(self):
            declaration, value = declaration_of(field), getattr(self, field.name)
            if declaration is None or not declaration.decides_output:
                continue
            if not (declaration.omit_default and value == default_value(field)):
                values[field.name] = value
        return values


def _with_locations(field: dataclasses.Field, value: Any) -> Any:
    """Returns a setting's value. Texts that name locations are parsed."""
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
    """Parses a path, a URL or the name of a hub model.

    Args:
        value: text, or a value that is already parsed, which is returned as it is.
        setting: see `Location.parse`.

    Raises:
        InputError: the text is a URL that names neither a location nor a model of the hub.
    """
    if isinstance(value, HubModel):
        return value
    model = hub_id.parse(value, setting) if isinstance(value, str) else None
    return Location.parse(value, setting) if model is None else model


def read_value(field: dataclasses.Field, value: Any) -> Any:
    """Returns a setting's checked value. Text is parsed if the field declares `parse`.

    Raises:
        InputError: the value cannot be parsed, or is not in the declared range.
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
    """Parses words separated by commas. Spaces around them are removed."""
    words = (word.strip() for word in text.split(","))
    return tuple(word for word in words if word)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parses numbers separated by commas.

    Raises:
        InputError: an item is not a finite number.
    """
    try:
        parsed = tuple(float(item) for item in text.split(","))
    except ValueError:
        parsed = (math.nan,)
    if not all(map(math.isfinite, parsed)):
        raise InputError(None, "numbers separated by commas, for example 1,2", f"{text!r}")
    return parsed


def parse_counts(text: str) -> tuple[int, ...]:
    """Parses integers above 0 separated by commas, sorts them and removes duplicates.

    Raises:
        InputError: an item is not an integer above 0.
    """
    try:
        counts = {int(item) for item in text.split(",")}
    except ValueError:
        counts = set()
    if not counts or min(counts) < 1:
        raise InputError(None, "integers above 0, for example 1,5", f"{text!r}")
    return tuple(sorted(counts))
