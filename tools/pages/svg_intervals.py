"""Charts of rows: a value each, and how far it varies."""

import dataclasses
from collections.abc import Sequence

from tools.pages.html_page import Markup, element
from tools.pages.svg_parts import TOP, WIDTH, Series, hint, line, svg, text
from tools.pages.svg_scales import (
    Axis,
    Format,
    Scale,
    extent,
    letters_width,
    padded,
    shortened,
    ticks,
)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A row of `interval_chart`: a value, and how far it varies."""

    name: str
    value: float
    spread: float | None
    hint: str
    place: int


_ROW = 24


def interval_chart(
    rows: Sequence[Interval], axis: Axis, *, value: Format, description: str
) -> Markup:
    """Draws a row for each value, with a bar from value − spread to value + spread.

    Args:
        rows: from above.
        axis: the horizontal one.
        value: how a row's value is written at its right.
        description: the chart in words, for whoever does not see it.
    """
    names = [shortened(row.name) for row in rows]
    left = 10 + max(map(letters_width, names))
    right = WIDTH - 10 - max(letters_width(value(row.value)) for row in rows)
    reach = [row.value + sign * (row.spread or 0.0) for row in rows for sign in (-1, 1)]
    low, high = padded(extent(reach, axis), axis, 0.06)
    bottom = TOP + _ROW * len(rows)
    scale = Scale(low, high, left, right)
    parts = []
    for tick in ticks(low, high, most=4):
        at = scale(tick)
        parts.append(line(at, TOP - 4, at, bottom, class_="grid"))
        label = axis.format(tick)
        parts.append(text(at, bottom + 15, label, text_anchor="middle", class_="tick"))
    parts.append(text(right, bottom + 33, axis.title, text_anchor="end", class_="title"))
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        parts += _interval(row, name, value(row.value), scale, TOP + _ROW * (index + 0.5))
    return svg(parts, description, height=bottom + 38)


def _interval(row: Interval, name: str, value: str, scale: Scale, height: float) -> list[Markup]:
    series = Series(row.name, (), row.place)
    style = f"fill: {series.colour}"
    bar = None
    if row.spread:
        ends = scale(row.value - row.spread), scale(row.value + row.spread)
        bar = line(ends[0], height, ends[1], height, stroke=series.colour, stroke_width=2)
    at = {"cx": f"{scale(row.value):.1f}", "cy": f"{height:.1f}"}
    point = element("circle", **at, r=4.5, fill=series.colour, class_="point")
    return [
        text(0, height + 4, name, style=style, class_="label"),
        element("g", hint(row.hint), bar, point, class_="series", data_name=row.name),
        text(WIDTH, height + 4, value, text_anchor="end", style=style, class_="label"),
    ]
