"""Flags of the tools for developers that are not yet generated from a config dataclass."""

import math
from collections.abc import Sequence

from absl import flags

from pipeline.base import compute_dtype, settings
from pipeline.base.errors import naming_setting


class FlagTable:
    """A command's own flags, apart from those of any other command in the process.

    Attributes:
        values: the flags; parsed by `run`.
    """

    def __init__(self) -> None:
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, text: str) -> None:
        """Defines a flag that holds text."""
        flags.DEFINE_string(name, default, text, flag_values=self.values)

    def boolean(self, name: str, default: bool | None, text: str) -> None:
        """Defines `--name` and `--noname`, also `--name=True`."""
        flags.DEFINE_bool(name, default, text, flag_values=self.values)

    def integer(
        self, name: str, default: int | None, text: str, *, low: int, high: int | None = None
    ) -> None:
        """Defines a flag that holds an integer from `low` to `high`."""
        flags.DEFINE_integer(name, default, text, low, high, flag_values=self.values)

    def number(
        self, name: str, default: float | None, text: str, *, low: float, high: float | None = None
    ) -> None:
        """Defines a flag that holds a number from `low` to `high`."""
        flags.DEFINE_float(name, default, text, low, high, flag_values=self.values)
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            message="expected a finite number",
            flag_values=self.values,
        )

    def choice(self, name: str, default: str | None, text: str, *, of: Sequence[str]) -> None:
        """Defines a flag that holds one of several words."""
        flags.DEFINE_enum(name, default, list(of), text, flag_values=self.values)

    def alias(self, name: str, other: str) -> None:
        """Defines another name of a flag."""
        flags.DEFINE_alias(name, other, flag_values=self.values)

    def backend(self) -> None:
        """Defines `--backend`."""
        backends = ["tensorflow", "jax"]
        self.choice("backend", "tensorflow", "What Keras computes with.", of=backends)

    def compute_dtype(self, text: str) -> None:
        """Defines `--compute_dtype`; see `choose_compute_dtype`."""
        text = f"{text} auto is mixed_bfloat16 where there are instructions for it, else float32."
        self.choice("compute_dtype", compute_dtype.FLOAT32, text, of=compute_dtype.CHOICES)

    def require(self, *names: str) -> None:
        """Makes flags that have no default required."""

        def nothing_missing(given: dict[str, str | None]) -> bool:
            missing = [f"--{name}" for name in names if not given[name]]
            if missing:
                raise flags.ValidationError(f"missing: {', '.join(missing)} (see --help)")
            return True

        flags.register_multi_flags_validator(names, nothing_missing, flag_values=self.values)


def parse_counts(name: str, text: str) -> tuple[int, ...]:
    """Parses a flag's integers above 0, separated by commas; see `settings.parse_counts`."""
    with naming_setting(name):
        return settings.parse_counts(text)
