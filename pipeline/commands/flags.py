"""Flags that are generated from the fields of config dataclasses.

A setting is declared as a field with `pipeline.base.settings.setting`. Its flag has the field's
name, default, range and help. The field also parses and checks the flag's text.
"""

import dataclasses
import itertools
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from absl import flags

from pipeline.base.errors import InputError, Setting, show_settings
from pipeline.base.settings import (
    Settings,
    declaration_of,
    default_value,
    is_required,
    read_value,
    value_type,
)
from pipeline.hub import models

Config = TypeVar("Config", bound=Settings)


@dataclasses.dataclass(frozen=True)
class FlagDescription:
    """The texts of a flag in `--help` and in the README's tables.

    Attributes:
        name: the field's name.
        default: the default as text; "required" for a field without one, empty for None.
        constraint: the choices or the range; empty if there are none.
        help: the help text, in which other settings are written as flags.
    """

    name: str
    default: str
    constraint: str
    help: str


@dataclasses.dataclass(frozen=True)
class FlagSet:
    """The flags of a command.

    A field without a declaration has no flag; `read_config` takes its value as an argument. The
    flag of a field without a default is required.

    Attributes:
        configs: config dataclasses. No two of their fields have the same name.
        leave_out: names of fields for which the command has no flag.
        defaults: defaults that depend on the machine, keyed by field name.
    """

    configs: tuple[type[Settings], ...]
    leave_out: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fields(self) -> list[dataclasses.Field]:
        """Returns the settings that have a flag, in the order of their declaration."""
        fields = itertools.chain.from_iterable(map(setting_fields, self.configs))
        return [field for field in fields if field.name not in self.leave_out]

    def define(self) -> flags.FlagValues:
        """Returns the unparsed flags, for `running.run`."""
        values = flags.FlagValues()
        for field in self.fields():
            _define(field, self.defaults.get(field.name, default_value(field)), values)
        if required := [field.name for field in self.fields() if is_required(field)]:
            _require(required, values)
        return values


def define_flags(*configs: type[Settings], **options: Any) -> flags.FlagValues:
    """Returns the flags of config dataclasses; `options` are other fields of `FlagSet`."""
    return FlagSet(configs, **options).define()


def setting_fields(config: type[Settings]) -> list[dataclasses.Field]:
    """Returns the fields of a config dataclass that are settings."""
    return [field for field in dataclasses.fields(config) if declaration_of(field) is not None]


def read_values(values: flags.FlagValues, config: type[Settings]) -> dict[str, Any]:
    """Returns the values of a config dataclass's settings from parsed flags, by field name."""
    names = [field.name for field in setting_fields(config) if field.name in values]
    return {name: values[name].value for name in names}


def read_config(values: flags.FlagValues, config: type[Config], **others: Any) -> Config:
    """Returns the config for parsed flags, and downloads the models of the hub that it names.

    Args:
        values: the parsed flags.
        config: the config dataclass.
        **others: values of fields without a flag, and values that replace those of flags.

    Raises:
        InputError: settings contradict each other, or a model cannot be downloaded.
    """
    return models.with_downloaded_models(build_config(values, config, **others))


def build_config(values: flags.FlagValues, config: type[Config], **others: Any) -> Config:
    """Returns a config for parsed flags that becomes a field of another config.

    Unlike `read_config`, it downloads no models.
    """
    return config(**{**read_values(values, config), **others})


def describe_flag(field: dataclasses.Field) -> FlagDescription:
    """Returns the texts of a setting's flag."""
    declaration, value = declaration_of(field), default_value(field)
    default = "required" if is_required(field) else "" if value is None else as_text(value)
    text = show_settings(declaration.help, "--{}".format)
    return FlagDescription(field.name, default, _constraint(field), text)


def _define(field: dataclasses.Field, default: Any, values: flags.FlagValues) -> None:
    text = describe_flag(field).help
    if value_type(field) is bool:
        flags.DEFINE_bool(field.name, default, text, flag_values=values)
    else:
        flags.DEFINE(_FieldParser(field), field.name, default, text, values, _Serializer())
    for alias in declaration_of(field).aliases:
        flags.DEFINE_alias(alias, field.name, flag_values=values)


def _require(names: Collection[str], values: flags.FlagValues) -> None:
    def check_required(flag_texts: dict[str, Any]) -> bool:
        missing = [f"--{name}" for name in names if flag_texts[name] in (None, "")]
        if missing:
            raise flags.ValidationError(f"missing: {', '.join(missing)} (see --help)")
        return True

    flags.register_multi_flags_validator(list(names), check_required, flag_values=values)


class _FieldParser(flags.ArgumentParser):
    """Parses a flag's text with its field, and checks the declared range."""

    def __init__(self, field: dataclasses.Field) -> None:
        super().__init__()
        self._field = field
        self.syntactic_help = _constraint(field)

    def parse(self, argument: Any) -> Any:
        """Parses a flag's string. A default is already parsed and is returned unchanged."""
        if not isinstance(argument, str):
            return argument
        kind = value_type(self._field)
        if kind not in (int, float) or declaration_of(self._field).parse is not None:
            return read_value(self._field, argument)
        try:
            value = kind(argument)
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            raise InputError(Setting(self._field.name), expected, repr(argument)) from None
        return read_value(self._field, value)


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return as_text(value)


def as_text(value: Any) -> str:
    """Returns a value as text in the syntax of flags."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={as_text(item)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _constraint(field: dataclasses.Field) -> str:
    declaration = declaration_of(field)
    if declaration.choices is not None:
        is_list = typing.get_origin(value_type(field)) is tuple
        return f"{'any' if is_list else 'one'} of {', '.join(declaration.choices)}"
    low, high = declaration.low, declaration.high
    if low is None:
        return "" if high is None else f"at most {high:.10g}"
    return f"at least {low:.10g}" if high is None else f"{low:.10g} to {high:.10g}"
