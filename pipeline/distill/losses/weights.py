"""Weights of losses, and their schedules during training."""

import dataclasses
import math

from pipeline.base.errors import InputError, suggest
from pipeline.base.settings import parse_words
from pipeline.distill.losses import LOSSES

SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
    """The change of a loss's weight over the steps.

    Attributes:
        shape: one of `SCHEDULES`.
        last: the weight at the last step; None for the weight at the first step.
    """

    shape: str
    last: float | None

    def __str__(self) -> str:
        return self.shape if self.last is None else f"{self.shape}:{self.last:g}"


def parse_loss_schedules(text: str) -> dict[str, WeightSchedule]:
    """Parses the text of `loss_schedules`, for example "masked_lm=linear:0,hidden_cosine=cosine:1".

    Raises:
        InputError: a loss is named twice, a shape is unknown, or a last weight is not a number of
            at least 0.
    """
    schedules: dict[str, WeightSchedule] = {}
    for entry in parse_words(text):
        name, _, value = entry.partition("=")
        shape, _, last = value.partition(":")
        if name in schedules:
            raise InputError(None, "a list that names each loss once", f"{name} twice")
        try:
            weight = None if shape == "constant" and not last else float(last)
        except ValueError:
            weight = math.nan
        if shape not in SCHEDULES or not (weight is None or 0.0 <= weight < math.inf):
            expected = f"{name}=constant, {name}=linear:LAST or {name}=cosine:LAST"
            raise InputError(None, f"{expected} with a last weight of at least 0", f"{entry!r}")
        schedules[name] = WeightSchedule(shape, weight)
    return schedules


def parse_losses(text: str) -> dict[str, float]:
    """Parses the text of `losses`, for example "soft_cross_entropy=1,probability_cosine=0.5".

    A name without a weight has weight 1.

    Raises:
        InputError: a loss is unknown or named twice, or a weight is not a number above 0.
    """
    losses: dict[str, float] = {}
    for entry in parse_words(text):
        name, _, weight = entry.partition("=")
        if name not in LOSSES:
            expected, hint = f"a list of {', '.join(LOSSES)}", suggest(name, LOSSES)
            raise InputError(None, expected, f"{name!r}", hint)
        if name in losses:
            raise InputError(None, "a list that names each loss once", f"{name} twice")
        try:
            losses[name] = float(weight or 1.0)
        except ValueError as error:
            raise InputError(None, f"a list with a number for {name}", f"{weight!r}") from error
        if not 0.0 < losses[name] < math.inf:
            raise InputError(None, f"a list with a weight above 0 for {name}", weight)
    if not losses:
        raise InputError(None, "a list of at least one loss", "none")
    return losses
