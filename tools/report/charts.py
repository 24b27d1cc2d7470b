"""Charts as inline SVG, drawn by matplotlib; text and axes take the page's colour.

Series take the colours of Okabe and Ito, which the colour-blind can tell apart, and differ in
dashes as well, for paper without colour.
"""

import dataclasses
import functools
import io
import itertools
import math
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tools.report import text_width

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MatplotlibAxis
    from matplotlib.figure import Figure

# Of Okabe and Ito, without yellow and black, which do not show on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#7f8894"
NUM_COLOURS = len(COLOURS)
_DASHES = ((), (6, 2), (2, 2), (6, 2, 1, 2), (4, 1, 1, 1, 1, 1), (9, 3))
_MARKERS = "os^Dvp"
# Stands for the colour of the page's text.
_INK = "#16181d"
_WIDTH = 5.0
_MAX_LABEL = 28
# A line of more points has no markers to be seen.
_MAX_MARKS = 12
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
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
    # A name is text, whatever characters are in it.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}

Format = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: with the unit.
        format: of the numbers at its ticks.
        logarithmic: whether equal ratios are equal lengths.
        whole: whether ticks are whole numbers.
        limits: where it begins and ends; None for the values' own range.
        floor: no value is below, and the axis does not go beyond; None without.
        ceiling: the same above.
    """

    title: str
    format: Format = "{:g}".format
    logarithmic: bool = False
    whole: bool = False
    limits: tuple[float, float] | None = None
    floor: float | None = None
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
        x: on the horizontal axis.
        y: on the vertical axis.
        hint: shown when one points at it.
        label: stands beside it.
        spread: half the length of its error bar, in units of `y`.
    """

    x: float
    y: float
    hint: str = ""
    label: str = ""
    spread: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it can be drawn."""
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: in the legend.
        points: in the order in which a line joins them.
        place: number of the colour and the dashes; beyond `NUM_COLOURS` the line is grey
            and not in the legend.
        joined: whether a line joins the points.
    """

    name: str
    points: tuple[Point, ...]
    place: int = 0
    joined: bool = True

    @property
    def finite(self) -> tuple[Point, ...]:
        """The points that can be drawn."""
        return tuple(point for point in self.points if point.is_finite)

    @property
    def is_grey(self) -> bool:
        """Whether there is no colour for it."""
        return self.place >= NUM_COLOURS

    def style(self) -> dict[str, Any]:
        """Returns the settings of its line and its markers."""
        if self.is_grey:
            style = {"color": GREY, "linewidth": 1.0, "marker": "o", "zorder": 1}
        else:
            style = {"color": COLOURS[self.place], "marker": _MARKERS[self.place]}
        if not self.joined:
            return {**style, "linestyle": "none"}
        return style if self.is_grey else {**style, "dashes": _DASHES[self.place]}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A row of `interval_chart`: a value, and how far it varies."""

    name: str
    value: float
    spread: float | None
    hint: str
    place: int


def shortened(text: str, most: int = _MAX_LABEL) -> str:
    """Returns a text of at most `most` columns, with … in its middle where it is longer."""
    if text_width.columns(text) <= most:
        return text
    half = (most - 1) // 2
    end = text_width.clipped(text[::-1], half)[::-1]
    return f"{text_width.clipped(text, most - 1 - half)}…{end}"


def _styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Returns a function that draws in the style of the charts here."""

    @functools.wraps(draw)
    def styled(*arguments: Any, **settings: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*arguments, **settings)

    return styled


@_styled
def line_figure(
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    value: Format,
    reference: tuple[str, float] | None = None,
) -> "Figure":
    """Draws lines; the legend has the name and the last value of each.

    Args:
        series: points that are no finite numbers are left out.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        value: how the last values are written.
        reference: a name and a value of `y`: a dashed line across.
    """
    drawn = [one for one in series if one.finite]
    figure, axes = _figure(3.1)
    for one in drawn:
        _plot(axes, one)
    if reference is not None:
        axes.axhline(reference[1], color=_INK, linewidth=1.0, linestyle=(0, (1, 3)))
    named = [one for one in drawn if not one.is_grey]
    texts = [f"{shortened(one.name)}  {value(one.finite[-1].y)}" for one in named]
    lines = [line for line, one in zip(axes.lines, drawn, strict=False) if not one.is_grey]
    if reference is not None:
        texts.append(f"{reference[0]}  {value(reference[1])}")
        lines.append(axes.lines[-1])
    bounds = [] if reference is None else [reference[1]]
    _set_axes(axes, x_axis, y_axis, drawn, bounds)
    _set_legend(figure, lines, texts)
    return figure


@_styled
def point_figure(
    series: Sequence[Series], x_axis: Axis, y_axis: Axis, *, diagonal: bool = False
) -> "Figure":
    """Draws points with their labels beside them, those of a series joined where it says so.

    Args:
        series: points that are no finite numbers are left out.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        diagonal: whether to draw the line y = x.
    """
    drawn = [one for one in series if one.finite]
    figure, axes = _figure(3.3)
    for one in drawn:
        _plot(axes, one)
        for point in one.finite:
            if point.spread:
                colour = one.style()["color"]
                axes.errorbar(point.x, point.y, point.spread, fmt="none", ecolor=colour)
            if point.label:
                place = {"xytext": (6, 5), "textcoords": "offset points", "fontsize": 9}
                axes.annotate(shortened(point.label), (point.x, point.y), **place)
    _set_axes(axes, x_axis, y_axis, drawn)
    if diagonal:
        axes.axline((0.0, 0.0), slope=1.0, color=_INK, linewidth=1.0, linestyle=(0, (1, 3)))
    if len(drawn) > 1:
        lines = list(itertools.islice(_series_lines(axes), len(drawn)))
        _set_legend(figure, lines, [shortened(one.name) for one in drawn])
    return figure


@_styled
def interval_figure(rows: Sequence[Interval], axis: Axis, *, value: Format) -> "Figure":
    """Draws a row for each value, with a bar from value − spread to value + spread.

    Args:
        rows: from above.
        axis: the horizontal one.
        value: how a row's value is written at its right.
    """
    figure, axes = _figure(0.9 + 0.32 * len(rows))
    for height, row in enumerate(rows):
        point = Point(row.value, height, row.hint)
        one = Series(row.name, (point,), row.place, joined=False)
        _plot(axes, one)
        if row.spread:
            axes.errorbar(row.value, height, xerr=row.spread, fmt="none", ecolor=_colour(one))
        at = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(1.02, height, value(row.value), **at)
    axes.set_yticks(range(len(rows)), [shortened(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _set_ticks(axes.xaxis, axis)
    axes.set_xlabel(axis.title)
    axes.grid(axis="x")
    return figure


def svg(figure: "Figure", description: str) -> "Markup":
    """Returns a chart as an element of a page, with the hints of its points.

    Args:
        figure: as this module draws it.
        description: the chart in words, for whoever does not see it.
    """
    import matplotlib
    from markupsafe import Markup

    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Of letters that matplotlib's font lacks; a page's reader has others.
        warnings.simplefilter("ignore")
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(content.getvalue())
    _add_hints(root, {line.get_gid(): line for line in _series_lines(figure.axes[0])})
    _clean(root)
    root.set("role", "img")
    root.set("aria-label", description)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(text.replace(_INK, "currentColor"))


def _figure(height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _colour(series: Series) -> str:
    return series.style()["color"]


def _plot(axes: "Axes", series: Series) -> None:
    points = series.finite
    many = series.joined and (len(points) > _MAX_MARKS or series.is_grey)
    size = 2.0 if many else 4.5 if series.joined else 7.0
    (line,) = axes.plot(
        [point.x for point in points],
        [point.y for point in points],
        markersize=size,
        clip_on=False,
        gid=f"series-{len(axes.lines)}",
        **series.style(),
    )
    line.hints = tuple(point.hint for point in points)
    line.set_label(series.name)


def _series_lines(axes: "Axes") -> Iterator[Any]:
    return (line for line in axes.lines if hasattr(line, "hints"))


def _set_axes(
    axes: "Axes",
    x_axis: Axis,
    y_axis: Axis,
    series: Sequence[Series],
    bounds: Sequence[float] = (),
) -> None:
    points = [point for one in series for point in one.finite]
    axes.margins(0.05, 0.1)
    _set_ticks(axes.xaxis, x_axis)
    _set_ticks(axes.yaxis, y_axis)
    axes.set_xlabel(x_axis.title)
    _set_limits(axes.set_xlim, axes.get_xlim(), x_axis, [point.x for point in points])
    heights = [point.y for point in points]
    _set_limits(axes.set_ylim, axes.get_ylim(), y_axis, [*heights, *bounds])
    axes.set_title(y_axis.title, loc="left", fontsize="medium")
    axes.grid(axis="y")


def _set_ticks(drawn: "MatplotlibAxis", axis: Axis) -> None:
    from matplotlib import ticker

    if axis.logarithmic:
        drawn.axes.set(**{f"{drawn.axis_name}scale": "log"})
        low, high = drawn.get_view_interval()
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
        drawn.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
        drawn.set_minor_locator(ticker.NullLocator())
    else:
        drawn.set_major_locator(ticker.MaxNLocator(5, integer=axis.whole))
    drawn.set_major_formatter(lambda value, _: axis.format(value))


def _set_limits(
    assign: Callable[[float, float], Any],
    limits: tuple[float, float],
    axis: Axis,
    values: Sequence[float],
) -> None:
    low, high = limits
    if axis.floor is not None and min(values) >= axis.floor:
        low = max(low, axis.floor)
    if axis.ceiling is not None and max(values) <= axis.ceiling:
        high = min(high, axis.ceiling)
    assign(*(axis.limits or (low, high)))


def _set_legend(figure: "Figure", lines: Sequence[Any], texts: Sequence[str]) -> None:
    columns = 2 if max(map(text_width.columns, texts), default=0) <= 24 else 1
    rows = math.ceil(len(texts) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    if texts:
        place = {"loc": "outside lower left", "ncols": columns, "frameon": False}
        figure.legend(lines, texts, handlelength=3.0, **place)


def _add_hints(root: ElementTree.Element, lines: dict[str, Any]) -> None:
    """Puts the hint of each point into the element that draws it."""
    for group in root.iter(f"{{{_SVG}}}g"):
        line = lines.get(group.get("id"))
        if line is None:
            continue
        group.set("data-name", line.get_label())
        markers = list(group.iter(f"{{{_SVG}}}use"))
        for marker, hint in zip(markers, line.hints, strict=True):
            if hint:
                ElementTree.SubElement(marker, f"{{{_SVG}}}title").text = hint


def _clean(root: ElementTree.Element) -> None:
    """Removes size and metadata, and names that another chart of the page has too."""
    for name in ("width", "height"):
        del root.attrib[name]
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for group in root.iter(f"{{{_SVG}}}g"):
        group.attrib.pop("id", None)
