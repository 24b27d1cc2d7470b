"""The report's parts about caches: fidelity for their size, and their teachers' calibration."""

from collections.abc import Sequence

from tools.report.charts import NUM_COLOURS, Axis, Point, Series, figure
from tools.report.curves import (
    AGREEMENT,
    CALIBRATION,
    measure_chart,
    megabytes,
    percents,
    whole_percents,
)
from tools.report.inputs import CacheFacts, Fidelity, Taught
from tools.report.page import Chart, Charts, Section, Table, chart
from tools.report.runs import Run

_SIZE_AXIS = Axis("bytes a masked position", "{:,.0f}".format, logarithmic=True)
# Bins of a reliability diagram with fewer positions say little.
_MIN_IN_BIN = 20
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


def _fidelity_chart(found: Sequence[Fidelity], planned: bool) -> Chart:
    series = []
    for place, encoding in enumerate(sorted({one.encoding for one in found})):
        members = [one for one in found if one.encoding == encoding]
        members.sort(key=lambda one: one.bytes)
        points = tuple(_point(one, one.name or f"{one.truncation_factor}") for one in members)
        series.append(Series(encoding, points, place, joined=planned))
    subtitle = (
        "planned caches; points are labelled with k, the tail is spread evenly over its tokens"
        if planned
        else "finished caches, as measured; the tail counts as one class"
    )
    axis = Axis("KL(teacher ‖ cached), nats", _power, logarithmic=True)
    return chart(_title(found), subtitle, figure(series, _SIZE_AXIS, axis))


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
    rows = []
    for one in found:
        names = [one.name, one.encoding] if one.name else [one.encoding]
        sizes = [str(one.truncation_factor), f"{one.bytes:,.1f}", percents(one.mass)]
        rows.append([*names, *sizes, _divergence(one.divergence)])
    return rows


def caches(
    planned: Sequence[Fidelity],
    measured: Sequence[Fidelity],
    taught: Sequence[Taught],
    made: Sequence[CacheFacts],
) -> Section | None:
    """Returns cache size against fidelity; None without caches.

    They are those of `plan_cache`, `fidelity_report` and `compare_caches`, and caches themselves.
    """
    charts = [
        _fidelity_chart(found, planned=plan)
        for found, plan in ((planned, True), (measured, False))
        if found
    ]
    if taught:
        charts.append(_taught_chart(taught))
    parts: list[Charts | Table] = [Charts(charts)] if charts else []
    titles = ["k", "bytes a position", "mass kept", "KL, nats"]
    if planned:
        plan = Table(["encoding", *titles], _rows(planned), summary="The plan in numbers")
        parts.append(plan)
    if measured:
        parts.append(Table(["cache", "encoding", *titles], _rows(measured), texts=2))
    if made:
        parts.append(_made(made))
    return Section("Cache size against fidelity", parts) if parts else None


def _made(made: Sequence[CacheFacts]) -> Table:
    rows = []
    for one in made:
        sizes = [f"{one.ids:,.1f}", f"{one.position_bytes:,.1f}", f"{one.examples:,}"]
        k = str(one.truncation_factor)
        rows.append([one.name, one.encoding, k, *sizes, megabytes(one.bytes)])
    titles = ["cache", "encoding", "k", "ids kept", "bytes a position", "examples", "on disk"]
    return Table(titles, rows, texts=2)


def _taught_chart(taught: Sequence[Taught]) -> Chart:
    least, most = (pick(taught, key=lambda one: one.bytes_per_position) for pick in (min, max))
    title = (
        f"Students agree with the teacher in {percents(least.agreement)} from {least.name}, "
        f"in {percents(most.agreement)} from {most.name}"
    )
    series = []
    for place, one in enumerate(taught):
        size = one.bytes_per_position
        hint = f"{one.name}: {size:,.0f} bytes, {percents(one.agreement)}"
        point = Point(size, one.agreement, hint, one.name, one.deviation)
        series.append(Series(one.name, (point,), place, joined=False))
    note = "the same student from each cache; bars: the deviation over seeds"
    return chart(title, note, figure(series, _SIZE_AXIS, AGREEMENT.y_axis()))


def calibration(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> Section | None:
    """Returns how far probabilities are from hits; None where nothing tells."""
    charts = [measure_chart(runs, CALIBRATION)]
    seen = set()
    for cache in caches:
        if cache.reliability is not None and cache.teacher not in seen:
            charts.append(_reliability_chart(cache, len(seen)))
            seen.add(cache.teacher)
    charts = [one for one in charts if one is not None]
    return Section("Calibration", [Charts(charts)]) if charts else None


def _reliability_chart(cache: CacheFacts, place: int) -> Chart:
    found = cache.reliability
    points = tuple(
        Point(x, y, f"{count:,} first guesses of mean probability {x:.1%}: {y:.1%} right")
        for x, y, count in zip(found.confidence, found.accuracy, found.counts, strict=True)
        if count >= _MIN_IN_BIN
    )
    title = (
        f"The teacher's own probabilities are off by {100.0 * found.error:.1f} points on average"
    )
    note = (
        f"first guesses in {cache.name}, {sum(found.counts):,} masked positions; "
        "on the dotted line it would be right as often as it says"
    )
    x_axis = Axis("probability of the first guess", whole_percents, limits=(0.0, 1.0))
    y_axis = Axis("share that is right", whole_percents, limits=(0.0, 1.0))
    series = Series("teacher", points, place % NUM_COLOURS)
    return chart(title, note, figure([series], x_axis, y_axis, diagonal=True))
