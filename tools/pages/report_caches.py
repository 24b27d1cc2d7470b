"""The report's part about caches: what a byte of them buys."""

import itertools
from collections.abc import Sequence

from tools.pages.html_page import Markup, element, figure, section, table
from tools.pages.report_curves import AGREEMENT, megabytes, percents
from tools.pages.report_inputs import CacheFacts, Fidelity, Taught
from tools.pages.svg_chart import point_chart
from tools.pages.svg_parts import Point, Series
from tools.pages.svg_scales import Axis

# On a logarithmic axis a divergence of 0 stands nowhere.
_SMALLEST = 1e-9


def _divergence(value: float) -> str:
    return f"{value:.2g}"


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e-")


def _point(one: Fidelity, label: str) -> Point:
    hint = (
        f"{one.name or one.encoding}, k = {one.truncation_factor}: {one.bytes:,.0f} bytes a "
        f"masked position, KL {_divergence(one.divergence)} nats, {one.mass:.1%} of the mass kept"
    )
    return Point(one.bytes, max(one.divergence, _SMALLEST), hint, label)


def _chart(found: Sequence[Fidelity], planned: bool) -> Markup:
    series = []
    groups = itertools.groupby(
        sorted(found, key=lambda one: one.encoding), lambda one: one.encoding
    )
    for place, (encoding, group) in enumerate(groups):
        members = sorted(group, key=lambda one: one.bytes)
        points = [_point(one, one.name or f"{one.truncation_factor}") for one in members[:-1]]
        last = members[-1]
        # The end of a line says whose it is.
        points.append(_point(last, last.name or f"{encoding} {last.truncation_factor}"))
        series.append(Series(encoding, tuple(points), place, joined=planned))
    title = _title(found)
    subtitle = (
        "planned caches; points are labelled with k, the tail is spread evenly over its tokens"
        if planned
        else "finished caches, as measured; the tail counts as one class"
    )
    chart = point_chart(
        series,
        Axis("bytes a masked position", "{:,.0f}".format, logarithmic=True),
        Axis("KL(teacher ‖ cached), nats", _power, logarithmic=True),
        description=title,
    )
    return figure(title, subtitle, chart)


def _title(found: Sequence[Fidelity]) -> str:
    """Returns what a smaller codec, or a smaller k, does to the divergence."""
    factors = [one.truncation_factor for one in found]
    # The largest k that each codec has.
    shared = [k for k in set(factors) if factors.count(k) == len({one.encoding for one in found})]
    rivals = [one for one in found if shared and one.truncation_factor == max(shared)]
    least, most = (pick(rivals or found, key=lambda one: one.bytes) for pick in (min, max))
    if len(rivals) > 1 and least.divergence <= 1.05 * most.divergence:
        return (
            f"At k = {least.truncation_factor} {least.encoding} takes "
            f"{least.bytes / most.bytes:.0%} of {most.encoding}'s bytes for the same divergence"
        )
    least, most = (pick(found, key=lambda one: one.bytes) for pick in (min, max))
    if least == most:
        return f"{least.bytes:,.0f} bytes for {_divergence(least.divergence)} nats"
    return (
        f"From {least.bytes:,.0f} to {most.bytes:,.0f} bytes the divergence goes from "
        f"{_divergence(least.divergence)} to {_divergence(most.divergence)} nats"
    )


def _rows(found: Sequence[Fidelity]) -> list[list[str]]:
    return [
        [
            one.name or one.encoding,
            *([one.encoding] if one.name else []),
            str(one.truncation_factor),
            f"{one.bytes:,.1f}",
            percents(one.mass),
            _divergence(one.divergence),
        ]
        for one in found
    ]


def caches(
    planned: Sequence[Fidelity],
    measured: Sequence[Fidelity],
    taught: Sequence[Taught],
    made: Sequence[CacheFacts],
) -> Markup | None:
    """Returns cache size against fidelity; None without caches.

    Args:
        planned: of `plan_cache`.
        measured: of `fidelity_report`.
        taught: of `compare_caches`.
        made: caches themselves.
    """
    parts: list[object] = []
    charts = [
        _chart(found, planned=plan) for found, plan in ((planned, True), (measured, False)) if found
    ]
    if taught:
        charts.append(_taught_chart(taught))
    if charts:
        parts.append(element("div", *charts, class_="charts"))
    titles = ["k", "bytes a position", "mass kept", "KL, nats"]
    if planned:
        inner = table(["encoding", *titles], _rows(planned))
        parts.append(element("details", element("summary", "The plan in numbers"), inner))
    if measured:
        parts.append(table(["cache", "encoding", *titles], _rows(measured), texts=2))
    if made:
        parts.append(_made(made))
    if not parts:
        return None
    return section("Cache size against fidelity", *parts)


def _made(made: Sequence[CacheFacts]) -> Markup:
    rows = [
        [
            one.name,
            one.encoding,
            str(one.truncation_factor),
            f"{one.ids:,.1f}",
            f"{one.position_bytes:,.1f}",
            f"{one.examples:,}",
            megabytes(one.bytes),
        ]
        for one in made
    ]
    titles = ["cache", "encoding", "k", "ids kept", "bytes a position", "examples", "on disk"]
    return table(titles, rows, texts=2)


def _taught_chart(taught: Sequence[Taught]) -> Markup:
    least, most = (pick(taught, key=lambda one: one.bytes) for pick in (min, max))
    title = (
        f"Students agree with the teacher in {percents(least.agreement)} from {least.cache}, "
        f"in {percents(most.agreement)} from {most.cache}"
    )
    series = [
        Series(
            one.cache,
            (
                Point(
                    one.bytes,
                    one.agreement,
                    f"{one.cache}: {one.bytes:,.0f} bytes, {percents(one.agreement)}",
                    one.cache,
                    one.deviation,
                ),
            ),
            place,
            joined=False,
        )
        for place, one in enumerate(taught)
    ]
    chart = point_chart(
        series,
        Axis("bytes a masked position", "{:,.0f}".format, logarithmic=True),
        AGREEMENT.y_axis(),
        description=title,
    )
    note = "the same student from each cache; bars: the deviation over seeds"
    return figure(title, note, chart)
