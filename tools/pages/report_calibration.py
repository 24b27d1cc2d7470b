"""The report's part about calibration: of the runs, and of the teachers of the caches."""

from collections.abc import Sequence

from tools.pages.html_page import Markup, element, figure, section
from tools.pages.report_curves import CALIBRATION, measure_chart, whole_percents
from tools.pages.report_inputs import CacheFacts
from tools.pages.report_runs import Run
from tools.pages.svg_chart import point_chart
from tools.pages.svg_parts import Point, Series
from tools.pages.svg_scales import Axis

# Bins of fewer positions say little.
_MIN_IN_BIN = 20


def calibration(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> Markup | None:
    """Returns how far probabilities are from hits; None where nothing tells."""
    charts = [measure_chart(runs, CALIBRATION)]
    seen = set()
    for cache in caches:
        if cache.reliability is not None and cache.teacher not in seen:
            seen.add(cache.teacher)
            charts.append(_reliability_chart(cache, len(seen) - 1))
    charts = [chart for chart in charts if chart is not None]
    if not charts:
        return None
    return section("Calibration", element("div", *charts, class_="charts"))


def _reliability_chart(cache: CacheFacts, place: int) -> Markup:
    found = cache.reliability
    points = tuple(
        Point(x, y, f"{count:,} first guesses of mean probability {x:.1%}: {y:.1%} right")
        for x, y, count in zip(found.confidence, found.accuracy, found.counts, strict=True)
        if count >= _MIN_IN_BIN
    )
    points_off = f"{100.0 * found.error:.1f} points"
    title = f"The teacher's own probabilities are off by {points_off} on average"
    note = (
        f"first guesses in {cache.name}, {sum(found.counts):,} masked positions; "
        "on the dotted line it would be right as often as it says"
    )
    chart = point_chart(
        [Series("teacher", points, place)],
        Axis("probability of the first guess", whole_percents, low=0.0, high=1.0),
        Axis("share that is right", whole_percents, low=0.0, high=1.0),
        description=title,
        diagonal=True,
    )
    return figure(title, note, chart)
