"""Charts as inline SVG, drawn by matplotlib. Text and axes have the page's color.

Series have the colors of Okabe and Ito, which color-blind readers can distinguish. They also
differ in their dashes, for print without color.
"""

import dataclasses
import functools
import io
import math
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tools.report import text_width

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MatplotlibAxis
    from matplotlib.figure import Figure

# The colors of Okabe and Ito, without yellow and black, which are invisible on white or black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GRAY = "#7f8894"
NUM_COLORS = len(COLORS)
_DASHES = ((), (6, 2), (2, 2), (6, 2, 1, 2), (4, 1, 1, 1, 1, 1), (9, 3))
_MARKERS = "os^Dvp"
# Placeholder for the color of the page's text.
_INK = "#16181d"
_DOTTED = {"color": _INK, "linewidth": 1.0, "linestyle": (0, (1, 3))}
# Labels of neighboring lines alternate sides. Beside a falling line, both sides have space for a
# label.
_ABOVE = {"xytext": (4, 5), "textcoords": "offset points", "ha": "left"}
_BELOW = {"xytext": (-4, -12), "textcoords": "offset points", "ha": "right"}
_WIDTH = 5.0
_MAX_LABEL = 28
# A line of more points has invisible markers, which only carry its hints.
_MAX_MARKS = 12
_SVG = "{http://www.w3.org/2000/svg}"
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.5,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "text.color": _INK,
    # A name may contain a dollar sign, which would start a formula.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}

Format = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: title, with the unit.
        format: formats the numbers at the ticks.
        logarithmic: whether the scale is logarithmic.
        whole: whether ticks are whole numbers.
        limits: the ends of the axis; None for the range of the values.
        bounds: smallest and largest possible value; the axis does not exceed them.
    """

    title: str
    format: Format = "{:g}".format
    logarithmic: bool = False
    whole: bool = False
    limits: tuple[float, float] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a chart, with a hint that appears under the pointer, and a label.

    `spread` is half the length of its error bar, on the axis of its value.
    """

    x: float
    y: float
    hint: str = ""
    label: str = ""
    spread: float | None = None


@dataclasses.dataclass(frozen=True)
class Series:
    """The points of one line, or points of one color.

    Attributes:
        name: name in the legend.
        points: the points, in the order of the line. Points that are not finite are left out.
        color_index: index of the color and the dashes. From `NUM_COLORS` on, the line is gray
            and not in the legend.
        joined: whether a line joins the points.
        value: text after the name in the legend.
    """

    name: str
    points: tuple[Point, ...]
    color_index: int = 0
    joined: bool = True
    value: str = ""

    @property
    def finite(self) -> tuple[Point, ...]:
        """The points that can be drawn."""
        return tuple(
            point for point in self.points if math.isfinite(point.x) and math.isfinite(point.y)
        )

    @property
    def is_gray(self) -> bool:
        """Whether the series is gray because all colors are used."""
        return self.color_index >= NUM_COLORS

    @property
    def color(self) -> str:
        """The color of the line and the markers."""
        return GRAY if self.is_gray else COLORS[self.color_index]

    def style(self) -> dict[str, Any]:
        """Returns matplotlib's settings for the line and the markers."""
        style = {"color": self.color, "marker": "o" if self.is_gray else _MARKERS[self.color_index]}
        if not self.joined:
            return {**style, "linestyle": "none", "markersize": 7.0}
        small = self.is_gray or len(self.points) > _MAX_MARKS
        style |= {"markersize": 0.1, "markeredgewidth": 0.0} if small else {"markersize": 4.5}
        if self.is_gray:
            return {**style, "linewidth": 1.0, "zorder": 1}
        return {**style, "dashes": _DASHES[self.color_index]}


def shorten(text: str, most: int = _MAX_LABEL) -> str:
    """Shortens a text to at most `most` columns, with … in its middle."""
    if text_width.display_width(text) <= most:
        return text
    half = (most - 1) // 2
    end = text_width.clip(text[::-1], half)[::-1]
    return f"{text_width.clip(text, most - 1 - half)}…{end}"


def _styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Decorates a function so that it draws in the style of these charts."""

    @functools.wraps(draw)
    def styled(*arguments: Any, **settings: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*arguments, **settings)

    return styled


@_styled
def figure(
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    reference: tuple[str, float] | None = None,
    diagonal: bool = False,
) -> "Figure":
    """Draws lines and points. The title of the vertical axis is above it.

    Args:
        series: the series. At least one has a point that can be drawn.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        reference: a text for the legend, and the value of y of a dotted line.
        diagonal: whether to draw a dotted line at y = x.
    """
    drawn = [curve for curve in series if curve.finite]
    made, axes = _figure(3.1)
    lines = [_plot(axes, curve) for curve in drawn]
    legend = [
        (line, f"{shorten(curve.name)}  {curve.value}".strip())
        for line, curve in zip(lines, drawn, strict=True)
        if not curve.is_gray
    ]
    points = [point for curve in drawn for point in curve.finite]
    heights = [point.y for point in points]
    if reference is not None:
        legend.append((axes.axhline(reference[1], **_DOTTED), reference[0]))
        heights.append(reference[1])
    # Room for labels.
    axes.margins(*((0.1, 0.2) if any(point.label for point in points) else (0.05, 0.1)))
    _set_axis(axes.xaxis, x_axis, [point.x for point in points])
    _set_axis(axes.yaxis, y_axis, heights)
    axes.set_xlabel(x_axis.title)
    axes.set_title(y_axis.title, loc="left", fontsize="medium")
    axes.grid(axis="y")
    if diagonal:
        axes.axline((0.0, 0.0), slope=1.0, **_DOTTED)
    if len(drawn) > 1 or any(curve.value for curve in drawn):
        _set_legend(made, legend)
    return made


@_styled
def interval_figure(rows: Sequence[Series], axis: Axis) -> "Figure":
    """Draws a row for each series, from the top down, with its value at the right.

    Each series has a single point. The axis and the error bars of the points are horizontal.
    """
    made, axes = _figure(0.9 + 0.32 * len(rows))
    for height, row in enumerate(rows):
        (point,) = row.points
        moved = dataclasses.replace(point, y=height, spread=None)
        _plot(axes, dataclasses.replace(row, points=(moved,), joined=False))
        if point.spread:
            axes.errorbar(point.x, height, xerr=point.spread, fmt="none", ecolor=row.color)
        place = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(1.02, height, row.value, **place)
    axes.set_yticks(range(len(rows)), [shorten(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _set_axis(axes.xaxis, axis, [row.points[0].x for row in rows])
    axes.set_xlabel(axis.title)
    axes.grid(axis="x")
    return made


def svg(drawn: "Figure", description: str) -> "Markup":
    """Returns a chart as an SVG element, with the hints of its points.

    The description is for screen readers.
    """
    import matplotlib
    from markupsafe import Markup

    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib warns of letters that its font lacks. The reader's browser has other fonts.
        warnings.simplefilter("ignore")
        drawn.savefig(content, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(content.getvalue())
    series = {line.get_gid(): line.series for line in _series_lines(drawn)}
    for group in root.iter(f"{_SVG}g"):
        # Other charts on the page have the same ids.
        if (curve := series.get(group.attrib.pop("id", None))) is not None:
            _add_hints(group, curve)
    for child in root.findall(f"{_SVG}metadata"):
        root.remove(child)
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": description}
    ElementTree.register_namespace("", _SVG.strip("{}"))
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(text.replace(_INK, "currentColor"))


def hints(drawn: "Figure") -> list[str]:
    """Returns the hints of all points, for readers without a pointer."""
    return [
        point.hint for line in _series_lines(drawn) for point in line.series.finite if point.hint
    ]


def _series_lines(drawn: "Figure") -> list[Any]:
    return [line for line in drawn.axes[0].lines if line.get_gid()]


def _figure(height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    made = Figure(figsize=(_WIDTH, height), layout="constrained")
    return made, made.add_subplot()


def _plot(axes: "Axes", series: Series) -> Any:
    points = series.finite
    columns = [point.x for point in points], [point.y for point in points]
    (line,) = axes.plot(*columns, clip_on=False, gid=f"{len(axes.lines)}", **series.style())
    line.series = series
    for point in points:
        if point.spread:
            axes.errorbar(point.x, point.y, point.spread, fmt="none", ecolor=series.color)
        if point.label:
            below = series.joined and series.color_index % 2 == 0
            where, place = (point.x, point.y), _BELOW if below else _ABOVE
            axes.annotate(shorten(point.label), where, fontsize=9, **place)
    return line


def _set_axis(drawn: "MatplotlibAxis", axis: Axis, values: Sequence[float]) -> None:
    from matplotlib import ticker

    if axis.logarithmic:
        drawn.axes.set(**{f"{drawn.axis_name}scale": "log"})
        low, high = drawn.get_view_interval()
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
        drawn.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
        drawn.set_minor_locator(ticker.NullLocator())
    else:
        drawn.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10], integer=axis.whole))
    drawn.set_major_formatter(lambda value, _: axis.format(value))
    low, high = getattr(drawn.axes, f"get_{drawn.axis_name}lim")()
    if min(values) >= axis.bounds[0]:
        low = max(low, axis.bounds[0])
    if max(values) <= axis.bounds[1]:
        high = min(high, axis.bounds[1])
    getattr(drawn.axes, f"set_{drawn.axis_name}lim")(*(axis.limits or (low, high)))


def _set_legend(made: "Figure", entries: Sequence[tuple[Any, str]]) -> None:
    columns = 2 if max(text_width.display_width(text) for _, text in entries) <= 24 else 1
    made.set_figheight(made.get_figheight() + 0.2 * math.ceil(len(entries) / columns))
    place = {"loc": "outside lower left", "ncols": columns, "frameon": False}
    made.legend(*zip(*entries, strict=True), handlelength=3.0, **place)


def _add_hints(group: ElementTree.Element, series: Series) -> None:
    """Adds to each point a larger invisible circle with its hint, which is easy to point at."""
    group.set("data-name", series.name)
    markers = list(group.iter(f"{_SVG}use"))
    for marker, point in zip(markers, series.finite, strict=True):
        if point.hint:
            place = {"class": "point", "cx": marker.get("x"), "cy": marker.get("y"), "r": "7"}
            circle = ElementTree.SubElement(group, f"{_SVG}circle", place)
            ElementTree.SubElement(circle, f"{_SVG}title").text = point.hint
