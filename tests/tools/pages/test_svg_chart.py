"""Charts: where points lie by the chart's own ticks, and that no label covers another."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.page_reading import labels, read_points
from tools.pages import svg_chart, svg_intervals, svg_scales
from tools.pages.svg_intervals import Interval
from tools.pages.svg_parts import WIDTH, Point, Series
from tools.pages.svg_scales import Axis

STEPS = Axis("updates", "{:,.0f}".format)
SHARES = Axis("share", lambda share: f"{100 * share:.4g}%")


def _read(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def _line_chart(series, **settings) -> ElementTree.Element:
    settings = {"value": "{:.1%}".format, "description": "", **settings}
    return _read(svg_chart.line_chart(series, STEPS, SHARES, **settings))


def _series(name: str, points, place: int = 0, **fields) -> Series:
    return Series(name, tuple(Point(x, y) for x, y in points), place, **fields)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.12, 0.58, [0.2, 0.3, 0.4, 0.5]),
        (0, 100, [0, 25, 50, 75, 100]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (99.2, 99.6, [99.2, 99.3, 99.4, 99.5, 99.6]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert svg_scales.ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_within(low: float, length: float) -> None:
    high = low + length
    found = svg_scales.ticks(low, high)
    assert 1 <= len(found) <= 5
    assert all(low - 1e-6 * length <= tick <= high + 1e-6 * length for tick in found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.94], (0.846, 1.0)),
        ([1.0], (0.9, 1.0)),
        ([0.0], (0.0, 0.54)),
        ([0.02, 0.98], (0.0, 1.0)),
        ([0.4, 0.6], (0.392, 0.608)),
    ],
)
def test_an_axis_ends_where_values_do(values: list[float], expected: tuple[float, float]) -> None:
    axis = Axis("share", floor=0.0, ceiling=1.0)
    found = svg_scales.padded(svg_scales.extent(values, axis), axis, 0.04)
    assert found == pytest.approx(expected, abs=0.01)


def test_log_ticks() -> None:
    assert svg_scales.log_ticks(30, 600) == [50, 100, 200, 500]
    assert svg_scales.log_ticks(1e-8, 3) == pytest.approx([1e-8, 1e-6, 1e-4, 1e-2, 1])
    assert svg_scales.log_ticks(0.31, 1.4) == pytest.approx([0.4, 0.5, 0.6, 0.8, 1])


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=12))
def test_places_are_spread_out(places: list[float]) -> None:
    moved = svg_scales.spread_out(places, 14, 0, 100)
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in moved)
    gap = min(14, 100 / max(1, len(places) - 1))
    ordered = sorted(moved)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(ordered))
    if places == sorted(places):
        assert moved == ordered


def test_places_that_are_apart_stay() -> None:
    assert svg_scales.spread_out([10, 12, 40], 14, 0, 100) == [10, 24, 40]
    assert svg_scales.spread_out([40, 10], 14, 0, 100) == [40, 10]


def test_curves_lie_where_their_values_are() -> None:
    first = [(20, 0.1), (40, 0.52), (60, 0.58), (120, 0.59)]
    second = [(20, 0.2), (120, 0.31)]
    chart = _line_chart([_series("a", first), _series("b", second, 1)])
    found = read_points(chart)
    for name, points in (("a", first), ("b", second)):
        for got, expected in zip(found[name], points, strict=True):
            assert got == pytest.approx(expected, abs=0.3, rel=2e-3)
    assert [text for text, _, _ in labels(chart)] == ["a 59.0%", "b 31.0%"]
    # The larger stands higher, the later further to the right.
    assert labels(chart)[0][2] < labels(chart)[1][2]
    places = [pair.split(",") for pair in next(chart.iter("polyline")).get("points").split()]
    assert float(places[0][0]) < float(places[-1][0])
    assert float(places[0][1]) > float(places[-1][1])


def test_points_on_logarithmic_axes() -> None:
    points = [(42.0, 1e-7), (522.0, 3e-3), (90.0, 2.0)]
    axis = Axis("bytes", "{:g}".format, logarithmic=True)
    series = Series("k", tuple(Point(x, y, label=str(x)) for x, y in points), joined=False)
    chart = _read(svg_chart.point_chart([series], axis, axis, description="all"))
    found = read_points(chart, log_x=True, log_y=True)["k"]
    for got, expected in zip(found, points, strict=True):
        assert got == pytest.approx(expected, rel=0.02)
    assert chart.get("aria-label") == "all"


def test_labels_at_one_height_are_moved_apart() -> None:
    series = [_series(f"run {place}", [(1, 0.1), (2, 0.5)], place) for place in range(8)]
    chart = _line_chart(series, reference=("teacher", 0.5))
    heights = sorted(y for _, _, y in labels(chart))
    assert len(heights) == 9
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))
    right = max(x + svg_scales.letters_width(text) for text, x, _ in labels(chart))
    assert right <= WIDTH


def test_labels_of_points_cover_neither_points_nor_each_other() -> None:
    points = [(x, y) for x in (1.0, 1.01, 1.02, 2.0) for y in (1.0, 1.01, 2.0)]
    series = Series("", tuple(Point(x, y, label=f"at {x}, {y}") for x, y in points), joined=False)
    axis = Axis("", "{:g}".format)
    chart = _read(svg_chart.point_chart([series], axis, axis, description=""))
    boxes = []
    for one in chart.iter("text"):
        if one.get("class") == "label":
            x, y, width = float(one.get("x")), float(one.get("y")), 6.9 * len(one.text)
            left = x - {"start": 0, "middle": width / 2, "end": width}[one.get("text-anchor")]
            boxes.append((left, y - 10, left + width, y + 3))
    assert len(boxes) >= 4
    for one, other in itertools.combinations(boxes, 2):
        assert svg_scales.overlap(one, other) == 0
    assert all(box[0] >= 0 and box[2] <= WIDTH for box in boxes)


def test_only_eight_are_in_colour() -> None:
    series = [_series(f"run {place}", [(1, 0.1), (2, place / 10)], place) for place in range(10)]
    chart = _line_chart(series)
    strokes = [one.get("stroke") for one in chart.iter("polyline")]
    assert strokes.count("var(--rest)") == 2 and len(set(strokes)) == 9
    # The grey ones are drawn first, below the others.
    assert strokes[:2] == ["var(--rest)"] * 2
    assert len(labels(chart)) == 8
    dashes = [one.get("stroke-dasharray") for one in chart.iter("polyline")][2:]
    assert len(set(dashes)) == 8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_left_out(value: float) -> None:
    chart = _line_chart(
        [_series("a", [(1, 0.5), (2, value), (3, 0.7)]), _series("b", [(1, value)])]
    )
    found = read_points(chart)
    assert len(found["a"]) == 2 and "b" not in found
    assert "nan" not in ElementTree.tostring(chart, "unicode").lower()


def test_one_point_and_equal_values() -> None:
    for points in ([(5, 0.5)], [(5, 0.5), (9, 0.5)], [(0, 0.0)]):
        chart = _line_chart([_series("a", points)])
        for got, expected in zip(read_points(chart)["a"], points, strict=True):
            assert got == pytest.approx(expected, abs=0.05)


def test_hints_and_names_are_escaped() -> None:
    series = Series("<b>&", (Point(1, 1, '"><script>'), Point(2, 2)))
    chart = svg_chart.line_chart([series], STEPS, SHARES, value=str, description='"<')
    assert "<script>" not in chart and "<b>" not in chart
    titles = [one.text for one in _read(chart).iter("title")]
    assert titles[:2] == ["<b>&", '"><script>']


def test_intervals() -> None:
    rows = [Interval("a", 90.0, 2.0, "hint", 0), Interval("b", 80.0, None, "", 1)]
    chart = _read(
        svg_intervals.interval_chart(
            rows, Axis("x", "{:g}".format), value="{:.2f}".format, description=""
        )
    )
    ticks = [
        (float(one.text), float(one.get("x")))
        for one in chart.iter("text")
        if one.get("class") == "tick"
    ]
    (a, place_a), *_, (b, place_b) = ticks
    unit = (place_b - place_a) / (b - a)
    dots = [float(one.get("cx")) for one in chart.iter("circle")]
    assert (dots[0] - dots[1]) / unit == pytest.approx(10.0, abs=0.05)
    (bar,) = [one for group in chart.iter("g") for one in group.iter("line")]
    assert (float(bar.get("x2")) - float(bar.get("x1"))) / unit == pytest.approx(4.0, abs=0.05)
    assert [text for text, _, _ in labels(chart)] == ["a", "90.00", "b", "80.00"]


def test_long_names_are_shortened_in_the_middle() -> None:
    assert svg_scales.shortened("distilled") == "distilled"
    assert svg_scales.shortened("a" * 10 + "b" * 10) == "a" * 9 + "…" + "b" * 8
    assert svg_scales.shortened("春" * 12) == "春春春春…春春春春"
