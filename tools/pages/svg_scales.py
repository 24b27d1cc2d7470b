"""Where the values of a chart come to lie: scales, round numbers, labels apart from each other."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from tools.pages import text_width

# A letter of the charts' font, in units; labels are placed by this estimate.
_LETTER = 6.9
_MAX_LABEL = 18

Format = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """What an axis says.

    Attributes:
        title: with the unit.
        format: of the numbers at its ticks.
        logarithmic: whether equal ratios are equal lengths.
        low: where it begins at the latest; None for the smallest value.
        high: where it ends at the earliest; None for the largest value.
        floor: what no value can be below, and the axis does not go beyond; None without.
        ceiling: the same above.
    """

    title: str
    format: Format = "{:g}".format
    logarithmic: bool = False
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps the numbers from `low` to `high` to the units from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Returns round numbers from `low` to `high`, at most `most`, equally far apart.

    Example: from 0.12 to 0.58 they are 0.2, 0.3, 0.4, 0.5.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float, *, most: int = 7) -> list[float]:
    """Returns round numbers from `low` to `high` for a logarithmic axis.

    Example: from 30 to 600 they are 50, 100, 200, 500.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in decades for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) <= most:
            return found
    every = math.ceil(len(found) / most)
    return found[::every]


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves places on a line apart until each is `gap` from the next, in the same order.

    Args:
        places: where they would be.
        gap: the least distance; smaller where they do not all fit.
        low: none is below this.
        high: none is above this.

    Example: 10, 12 and 40 with a gap of 14 become 10, 24 and 40.
    """
    if len(places) > 1:
        gap = min(gap, (high - low) / (len(places) - 1))
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    moved = [min(max(places[index], low), high) for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    # Whatever was pushed out at the end pushes back.
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    result = [0.0] * len(places)
    for index, value in zip(order, moved, strict=True):
        result[index] = value
    return result


def shortened(text: str, most: int = _MAX_LABEL) -> str:
    """Returns a text of at most `most` columns, with … in its middle where it is longer."""
    if text_width.columns(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text_width.clipped(text, most - 1 - half)}…{text_width.clipped_end(text, half)}"


def letters_width(text: str) -> float:
    """Returns the estimated width of a text in units."""
    return _LETTER * text_width.columns(text)


def extent(values: Iterable[float], axis: Axis) -> tuple[float, float]:
    """Returns the lowest and the highest number that an axis has to show, never the same.

    Args:
        values: at least one, finite.
        axis: may have bounds of its own.
    """
    found = list(values)
    found += [bound for bound in (axis.low, axis.high) if bound is not None]
    low, high = min(found), max(found)
    if axis.logarithmic:
        return (low, high) if high > low * 1.05 else (low / 1.5, high * 1.5)
    if high - low <= 1e-9 * max(1.0, abs(high)):
        room = 0.1 * abs(high) or 0.5
        return low - room, high + room
    return low, high


def padded(span: tuple[float, float], axis: Axis, share: float) -> tuple[float, float]:
    """Leaves room beyond the outermost values, but not beyond the axis's bounds.

    Args:
        span: of the values.
        axis: theirs.
        share: of the extent, at each end.
    """
    low, high = span
    if axis.logarithmic:
        factor = (high / low) ** share
        return low / factor, high * factor
    room = (high - low) * share
    low = low if axis.low is not None and low >= axis.low else low - room
    high = high if axis.high is not None and high <= axis.high else high + room
    return (
        low if axis.floor is None else max(low, axis.floor),
        high if axis.ceiling is None else min(high, axis.ceiling),
    )


# Left, top, right, bottom.
Box = tuple[float, float, float, float]


def overlap(one: Box, other: Box) -> float:
    """Returns the area that two boxes share; each is left, top, right and bottom."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def places_around(
    x: float, y: float, words: str, reach: float = 0.0
) -> list[tuple[float, float, str, Box]]:
    """Returns where a label of a point may stand, the best first.

    Args:
        x: of the point.
        y: of the point.
        words: of the label.
        reach: how far its error bar goes up and down.

    Returns:
        for each place its x, y, anchor and box.
    """
    width = letters_width(words)
    places = []
    for x_shift, y_shift, anchor in (
        (8, 4, "start"),
        (-8, 4, "end"),
        (0, -8 - reach, "middle"),
        (0, 18 + reach, "middle"),
        (4, -8 - reach, "end"),
        (4, 18 + reach, "end"),
        (-4, -8 - reach, "start"),
        (-4, 18 + reach, "start"),
        (5, -6, "start"),
        (5, 15, "start"),
        (-5, -6, "end"),
        (-5, 15, "end"),
        (0, -21 - reach, "middle"),
        (0, 30 + reach, "middle"),
        (14, -16, "start"),
        (-14, 24, "end"),
    ):
        at = x + x_shift
        begin = at - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (begin, y + y_shift - 10, begin + width, y + y_shift + 3)
        places.append((at, y + y_shift, anchor, box))
    return places
