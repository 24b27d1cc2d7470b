"""Weights of losses, and how they change during training."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from pipeline.base.errors import InputError, Setting
from pipeline.distill.losses import LOSSES

SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
    """How a loss's weight changes over the updates, from its first value to its last.

    Attributes:
        shape: one of `SCHEDULES`.
        last: the weight at the last update.
    """

    shape: str
    last: float


def _entries(text: str | None) -> Iterator[tuple[str, str, str]]:
    """Yields the entries of a comma-separated list of NAME=VALUE: whole, name and value."""
    for entry in filter(None, (entry.strip() for entry in (text or "").split(","))):
        name, _, value = entry.partition("=")
        yield entry, name, value


def parse_losses(text: str) -> dict[str, float]:
    """Reads `--losses`.

    Args:
        text: for example `soft_cross_entropy=1,probability_cosine=0.5`; a name without a
            weight has weight 1.

    Raises:
        InputError: an unknown loss, a loss twice, or a weight that is not a number above 0.
    """
    setting, losses = Setting("losses"), {}
    for _, name, weight in _entries(text):
        if name not in LOSSES:
            raise InputError(setting, f"names of {', '.join(LOSSES)}", f"{name!r}")
        if name in losses:
            raise InputError(setting, "each loss once", f"{name} twice")
        try:
            losses[name] = float(weight or 1.0)
        except ValueError as error:
            raise InputError(setting, f"a number for {name}", f"{weight!r}") from error
        if not 0.0 < losses[name] < math.inf:
            raise InputError(setting, f"a weight above 0 for {name}", weight)
    if not losses:
        raise InputError(setting, "at least one loss", "none")
    return losses


def parse_loss_schedules(
    text: str | None, losses: Mapping[str, float]
) -> dict[str, WeightSchedule]:
    """Reads `--loss_schedules`.

    Args:
        text: for example `masked_lm=linear:0,hidden_cosine=cosine:0.5`; or None.
        losses: the losses and their first weights.

    Raises:
        InputError: a loss that has no weight or is there twice, an unknown shape, or a last
            weight that is not a number of at least 0.
    """
    setting, schedules = Setting("loss_schedules"), {}
    for entry, name, value in _entries(text):
        shape, _, last = value.partition(":")
        if name not in losses or name in schedules:
            expected = f"losses of `losses` ({', '.join(losses)}), each once"
            raise InputError(setting, expected, f"{name!r}")
        try:
            weight = losses[name] if shape == "constant" and not last else float(last)
        except ValueError:
            weight = math.nan
        if shape not in SCHEDULES or not 0.0 <= weight < math.inf:
            raise InputError(
                setting,
                f"{name}=constant, {name}=linear:LAST or {name}=cosine:LAST with a last "
                "weight of at least 0",
                f"{entry!r}",
            )
        schedules[name] = WeightSchedule(shape, weight)
    return schedules
