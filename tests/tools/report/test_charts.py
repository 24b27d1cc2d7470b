"""Charts: positions of points, labels, and the escaping of names."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.tools.page_reading import hints, texts
from tools.report import charts
from tools.report.charts import Axis, Point, Series

UPDATES = Axis("updates", "{:,.0f}".format, whole=True, bounds=(0.0, math.inf))
SHARES = Axis("share", lambda share: f"{100 * share:.4g}%", bounds=(0.0, 1.0))
NASTY = "<script>$\\frac{$ _&\"'"


def _series(name: str, *points: tuple[float, float], order: int = 0) -> Series:
    line_points = tuple(Point(x, y, f"at {x}") for x, y in points)
    return Series(name, line_points, order, value=f"{points[-1][1]:.1%}")


def _line_figure(*series: Series, **settings):
    return charts.figure(series, UPDATES, SHARES, **settings)


def _read(figure) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(figure, "described"))


def _legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_lines_have_their_values_and_the_legend_the_last_ones() -> None:
    figure = _line_figure(
        _series("a", (20, 0.1), (40, math.nan), (120, 0.59)),
        _series("b", (20, 0.2), (120, 0.31), order=1),
        _series("c", (20, math.inf)),
        reference=("teacher  65.0%", 0.65),
    )
    first, second, reference = figure.axes[0].lines
    assert first.get_xydata().tolist() == [[20, 0.1], [120, 0.59]]
    assert second.get_xydata().tolist() == [[20, 0.2], [120, 0.31]]
    assert set(reference.get_ydata()) == {0.65} and reference.get_linestyle() == "--"
    assert _legend(figure) == ["a  59.0%", "b  31.0%", "teacher  65.0%"]
    assert hints(_read(figure)) == {"a": ["at 20", "at 120"], "b": ["at 20", "at 120"]}


def test_each_hint_has_a_circle_at_its_point_and_is_listed() -> None:
    points = (Point(1, 0.1, "first"), Point(2, 0.4), Point(3, 0.9, "third"))
    figure = _line_figure(Series("a", points))
    (group,) = [element for element in _read(figure).iter() if element.get("data-name") == "a"]
    markers = [(use.get("x"), use.get("y")) for use in group.iter() if use.tag.endswith("}use")]
    circles = [circle for circle in group.iter() if circle.get("class") == "point"]
    centers = [(circle.get("cx"), circle.get("cy")) for circle in circles]
    assert centers == [markers[0], markers[2]]
    assert [circle[0].text for circle in circles] == charts.hints(figure) == ["first", "third"]


@pytest.mark.parametrize("points", [[(5, 0.5)], [(5, 0.5), (9, 0.5)], [(0, 0.0)], [(0, 1e40)]])
def test_one_point_and_equal_values_are_drawn(points) -> None:
    figure = _line_figure(_series("a", *points))
    low, high = figure.axes[0].get_ylim()
    assert low <= points[0][1] <= high and low < high
    assert len(hints(_read(figure))["a"]) == len(points)


def test_axis_limits_respect_the_bounds() -> None:
    axes = _line_figure(_series("a", (0, 0.0), (10, 1.0))).axes[0]
    assert axes.get_ylim() == (0.0, 1.0) and axes.get_xlim()[0] == 0.0


def test_series_beyond_the_palette_are_gray_and_not_in_the_legend() -> None:
    num_series = charts.NUM_COLORS + 2
    figure = _line_figure(
        *(
            _series(f"run {index}", (1, 0.1), (2, index / 10), order=index)
            for index in range(num_series)
        )
    )
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [*charts.COLORS, charts.GRAY, charts.GRAY]
    assert len(_legend(figure)) == charts.NUM_COLORS
    dashes = {str(line._dash_pattern) for line in figure.axes[0].lines[: charts.NUM_COLORS]}
    assert len(dashes) == charts.NUM_COLORS


def test_points_on_logarithmic_axes_keep_values_labels_and_error_bars() -> None:
    points = (Point(42.0, 1e-7, "hint", "label"), Point(522.0, 3e-3, spread=1e-3), Point(90.0, 2.0))
    axis = Axis("bytes", "{:g}".format, logarithmic=True)
    figure = charts.figure([Series("k", points, joined=False)], axis, axis)
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.lines[0].get_xydata().tolist() == [[42, 1e-7], [522, 3e-3], [90, 2]]
    (bar,) = axes.collections[0].get_segments()
    assert bar.tolist() == [[522, pytest.approx(2e-3)], [522, pytest.approx(4e-3)]]
    chart = _read(figure)
    assert "label" in texts(chart) and hints(chart) == {"k": ["hint"]}
    assert chart.get("aria-label") == "described" and chart.get("role") == "img"


def test_labels_of_neighboring_lines_are_on_different_sides() -> None:
    points = tuple(Point(x, 1 / x, label=f"{x}") for x in (1, 2))
    axis = Axis("bytes", logarithmic=True)
    lines = [Series("a", points), Series("b", points, 1), Series("c", points, joined=False)]
    heights = [text.xyann[1] for text in charts.figure(lines, axis, axis).axes[0].texts]
    assert [height > 0 for height in heights] == [False, False, True, True, True, True]


def test_intervals_have_names_values_and_bars() -> None:
    rows = [
        Series("a", (Point(90.0, 0.0, "hint", spread=2.0),), value="90.00"),
        Series("b", (Point(80.0, 0.0),), 1, value="80.00"),
    ]
    figure = charts.interval_figure(rows, Axis("score"))
    (bar,) = figure.axes[0].collections[0].get_segments()
    assert bar.tolist() == [[88, 0], [92, 0]]
    chart_texts = texts(_read(figure))
    assert {"a", "b", "90.00", "80.00", "score"} <= set(chart_texts)


@pytest.mark.parametrize("name", [NASTY, "_hidden", "春天", "$x$"])
def test_names_and_hints_are_escaped_as_text(name: str) -> None:
    series = Series(name, (Point(1, 1, name, name), Point(2, 2)))
    for figure in (
        charts.figure([series, series], Axis(name), Axis(name)),
        charts.interval_figure([Series(name, (Point(1, 0, name),), value=name)], Axis(name)),
    ):
        markup = charts.svg(figure, name)
        chart = ElementTree.fromstring(markup)
        assert "<script" not in markup and chart.get("aria-label") == name
        assert hints(chart)[name] == [name]
        assert [text for text in texts(chart) if text.startswith(name)]


def test_chart_uses_the_pages_color_and_is_reproducible() -> None:
    markup = [charts.svg(_line_figure(_series("a", (1, 0.5))), "x") for _ in range(2)]
    assert markup[0] == markup[1]
    assert "currentColor" in markup[0] and charts._INK not in markup[0]
    assert not re.search(r"<metadata|<g id=|<\?xml", markup[0])


def test_long_names_are_shortened_in_the_middle() -> None:
    assert charts.shorten("distilled") == "distilled"
    assert charts.shorten("a" * 10 + "b" * 10, 18) == "a" * 9 + "…" + "b" * 8
    assert charts.shorten("春" * 12, 18) == "春春春春…春春春春"
