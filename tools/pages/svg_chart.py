"""Charts as inline SVG: curves and points with their labels beside them.

Colours come from the page's style sheet (`tools.pages.html_page`), so that light, dark
and paper each have their own. A chart is 400 units wide and is shown at about one
unit a pixel on a phone as on a large screen, so that its letters stay legible.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from tools.pages.html_page import NUM_COLOURS, Markup, element
from tools.pages.svg_parts import HEIGHT, LINE, TOP, WIDTH, Point, Series, hint, line, svg, text
from tools.pages.svg_scales import (
    Axis,
    Box,
    Format,
    Scale,
    extent,
    letters_width,
    log_ticks,
    overlap,
    padded,
    places_around,
    shortened,
    spread_out,
    ticks,
)

_BOTTOM = 38


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where the axes of a chart are."""

    x: Scale
    y: Scale
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]


def _frame(
    series: Sequence[Series], x_axis: Axis, y_axis: Axis, *, right: float, room: float = 0.08
) -> _Frame:
    """Returns the axes: `right` units are left for labels, above and below a share `room`."""
    points = [point for one in series for point in one.finite]
    reach = [
        point.y + sign * (point.spread or 0.0)
        for point in points
        for sign in ((-1, 1) if point.spread else (0,))
    ]
    x_low, x_high = padded(extent([point.x for point in points], x_axis), x_axis, 0.04)
    y_low, y_high = padded(extent(reach, y_axis), y_axis, room)
    y_ticks = (log_ticks if y_axis.logarithmic else ticks)(y_low, y_high)
    x_ticks = (log_ticks if x_axis.logarithmic else ticks)(x_low, x_high)
    left = 13 + max((letters_width(y_axis.format(tick)) for tick in y_ticks), default=0)
    top = TOP + LINE
    return _Frame(
        Scale(x_low, x_high, left, WIDTH - right, x_axis.logarithmic),
        Scale(y_low, y_high, HEIGHT - _BOTTOM, top, y_axis.logarithmic),
        tuple(x_ticks),
        tuple(y_ticks),
    )


def _axes(frame: _Frame, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Returns grid lines, ticks and titles; the vertical axis's title lies above it."""
    x, y = frame.x, frame.y
    drawn = []
    for tick in frame.y_ticks:
        drawn.append(line(x.begin, y(tick), x.end, y(tick), class_="grid"))
        drawn.append(
            text(x.begin - 6, y(tick) + 4, y_axis.format(tick), text_anchor="end", class_="tick")
        )
    drawn.append(line(x.begin, y.begin, x.end, y.begin, class_="axis"))
    for tick in frame.x_ticks:
        drawn.append(line(x(tick), y.begin, x(tick), y.begin + 4, class_="axis"))
        drawn.append(
            text(x(tick), y.begin + 17, x_axis.format(tick), text_anchor="middle", class_="tick")
        )
    drawn.append(text(x.end, HEIGHT - 5, x_axis.title, text_anchor="end", class_="title"))
    drawn.append(text(0, TOP - 1, y_axis.title, class_="title"))
    return drawn


def _mark(point: Point, series: Series, frame: _Frame, radius: float) -> list[Markup]:
    """Returns a point, with its error bar where it has one."""
    x, y = frame.x(point.x), frame.y(point.y)
    drawn = []
    if point.spread:
        ends = [frame.y(point.y + sign * point.spread) for sign in (-1, 1)]
        drawn.append(line(x, ends[0], x, ends[1], stroke=series.colour, stroke_width=1.5))
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}"}
    seen = element("circle", **place, r=radius, fill=series.colour, class_="point")
    drawn.append(
        element(
            "g",
            hint(point.hint),
            # Larger and not to be seen: easier to point at.
            element("circle", **place, r=9, fill="transparent"),
            seen if radius else None,
        )
    )
    return drawn


# Beyond so many points a line shows its last one only.
_MAX_MARKS = 12


def _curve(series: Series, frame: _Frame, most: int = _MAX_MARKS) -> Markup:
    """Returns a line with its points; of more than `most` only the last is to be seen."""
    points = series.finite
    places = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in points)
    drawn = []
    if series.joined and len(points) > 1:
        drawn.append(
            element(
                "polyline",
                element("title", series.name),
                points=places,
                fill="none",
                stroke=series.colour,
                stroke_width=1.2 if series.is_grey else 2,
                stroke_dasharray=series.dashes,
                stroke_linejoin="round",
            )
        )
    radius = 2.0 if series.is_grey else 2.6 if series.joined else 4.5
    few = len(points) <= most and not series.is_grey
    for place, point in enumerate(points, 1):
        drawn += _mark(point, series, frame, radius if few or place == len(points) else 0.0)
    return element("g", *drawn, class_="series", data_name=series.name)


def _end_labels(labels: Sequence[tuple[str, float, str]], frame: _Frame) -> list[Markup]:
    """Returns labels at the right, each at the height of its line's end, none over another.

    Args:
        labels: text, height in units and colour of each.
        frame: of the chart.
    """
    heights = [height for _, height, _ in labels]
    places = spread_out(heights, LINE, frame.y.end, frame.y.begin)
    drawn = []
    for (words, height, colour), place in zip(labels, places, strict=True):
        begin = frame.x.end
        if abs(place - height) > 1:
            drawn.append(line(begin + 3, height, begin + 11, place, class_="leader"))
        drawn.append(text(begin + 13, place + 4, words, style=f"fill: {colour}", class_="label"))
    return drawn


def _leader(series: Series, frame: _Frame) -> Markup | None:
    """Returns a line from where a curve ends early to its label; None for the others."""
    x, y = frame.x(series.finite[-1].x), frame.y(series.finite[-1].y)
    if x > frame.x.end - 0.1 * (frame.x.end - frame.x.begin):
        return None
    return line(x + 6, y, frame.x.end, y, class_="leader")


def line_chart(
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    value: Format,
    description: str,
    reference: tuple[str, float] | None = None,
) -> Markup:
    """Draws lines, each with its name and its last value at its end.

    Args:
        series: the lines, one at least; points that are no finite numbers are left out.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        value: how the last values are written.
        description: the chart in words, for whoever does not see it.
        reference: a name and a value of `y`: a dashed line across.
    """
    drawn = [one for one in series if one.finite]
    # So many labels have room.
    named = drawn if len(drawn) <= NUM_COLOURS else [one for one in drawn if not one.is_grey]
    ends = [(one.name, one.finite[-1].y, one.colour) for one in named]
    bound = []
    if reference is not None:
        ends.append((*reference, "var(--soft)"))
        bound = [Series("", (Point(drawn[0].finite[0].x, reference[1]),))]
    texts = [f"{shortened(name)} {value(height)}" for name, height, _ in ends]
    room = 18 + max(map(letters_width, texts), default=0.0)
    frame = _frame([*drawn, *bound], x_axis, y_axis, right=room)
    parts = _axes(frame, x_axis, y_axis)
    if reference is not None:
        height = frame.y(reference[1])
        parts.append(line(frame.x.begin, height, frame.x.end, height, class_="reference"))
    parts += [leader for one in named if (leader := _leader(one, frame)) is not None]
    # Those in colour lie above the grey ones.
    parts += [_curve(one, frame) for one in sorted(drawn, key=lambda one: not one.is_grey)]
    labels = [
        (text, frame.y(height), colour)
        for text, (_, height, colour) in zip(texts, ends, strict=True)
    ]
    return svg(parts + _end_labels(labels, frame), description)


def _obstacles(series: Series, frame: _Frame) -> list[Box]:
    """Returns boxes around points, error bars and pieces of the line, for labels to keep off."""
    places = [(frame.x(point.x), frame.y(point.y)) for point in series.finite]
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for point, (x, _) in zip(series.finite, places, strict=True):
        if point.spread:
            high, low = (frame.y(point.y + sign * point.spread) for sign in (1, -1))
            boxes.append((x - 2, high, x + 2, low))
    for (x, y), (next_x, next_y) in itertools.pairwise(places if series.joined else []):
        steps = math.ceil(math.hypot(next_x - x, next_y - y) / 6)
        for step in range(1, steps):
            share = step / steps
            at_x, at_y = x + share * (next_x - x), y + share * (next_y - y)
            boxes.append((at_x - 2, at_y - 2, at_x + 2, at_y + 2))
    return boxes


def _point_labels(series: Sequence[Series], frame: _Frame) -> list[Markup]:
    """Returns the labels of points that find room; for the others there are hints."""
    taken = [box for one in series for box in _obstacles(one, frame)]
    for tick in frame.y_ticks:
        taken.append((0.0, frame.y(tick) - 7, frame.x.begin - 4, frame.y(tick) + 5))
    labelled = [(one, point) for one in series for point in one.finite if point.label]
    drawn = []
    # The longest first, as they fit in the fewest places.
    for one, point in sorted(labelled, key=lambda pair: -letters_width(pair[1].label)):
        words, height = shortened(point.label), frame.y(point.y)
        reach = height - frame.y(point.y + point.spread) if point.spread else 0.0
        places = places_around(frame.x(point.x), height, words, reach)
        # Far from its point a label might be another line's.
        for x, y, anchor, box in places[:-4] if one.joined else places:
            inside = box[0] >= 0 and box[2] <= WIDTH and box[1] >= TOP and box[3] <= frame.y.begin
            if inside and not any(overlap(box, other) for other in taken):
                taken.append(box)
                style = f"fill: {one.colour}"
                drawn.append(text(x, y, words, text_anchor=anchor, style=style, class_="label"))
                break
    return drawn


def point_chart(
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    description: str,
    diagonal: bool = False,
) -> Markup:
    """Draws points with their labels beside them, those of a series joined where it says so.

    Args:
        series: points that are no finite numbers are left out.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        description: the chart in words, for whoever does not see it.
        diagonal: whether to draw the line y = x.
    """
    drawn = [one for one in series if one.finite]
    ends = [one.finite[-1].label for one in drawn if one.joined]
    right = 18 + max((letters_width(shortened(words)) for words in ends), default=0.0)
    frame = _frame(drawn, x_axis, y_axis, right=right, room=0.16)
    parts = _axes(frame, x_axis, y_axis)
    if diagonal:
        low = max(frame.x.low, frame.y.low)
        high = min(frame.x.high, frame.y.high)
        ends = frame.x(low), frame.y(low), frame.x(high), frame.y(high)
        parts.append(line(*ends, class_="reference"))
    parts += [_curve(one, frame, len(one.points)) for one in drawn]
    return svg(parts + _point_labels(drawn, frame), description)
