"""The report's sections on caches: their fidelity and size, and their teachers' calibration."""

from collections.abc import Sequence

from tools.report.charts import NUM_COLORS, Axis, Point, Series, figure
from tools.report.curves import (
    AGREEMENT,
    CALIBRATION,
    measure_chart,
    megabytes,
    percents,
    whole_percents,
)
from tools.report.inputs import CacheFacts, CacheStudents, Fidelity
from tools.report.page import Chart, Charts, Note, Section, Table, chart
from tools.report.runs import Run

_SIZE_AXIS = Axis("bytes per masked position", "{:,.0f}".format, logarithmic=True)
_PLANNED = "points are labeled with k, or with the bits of head states"
# Bins of a reliability diagram with fewer positions are too noisy.
_MIN_IN_BIN = 20
# Smaller divergences are drawn at this value, because a logarithmic axis has no 0.
_SMALLEST = 1e-9
# Divergences up to this ratio are about the same.
_SAME = 1.05


def _divergence(value: float) -> str:
    return f"{value:.2g}"


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e-")


def _point(entry: Fidelity) -> Point:
    size = f"k = {entry.k}: {entry.bytes:,.0f} bytes per masked position"
    fit = f"KL {_divergence(entry.divergence)} nats, {entry.mass:.1%} of the mass kept"
    hint = f"{entry.name or entry.encoding}, {size}, {fit}"
    return Point(entry.bytes, max(entry.divergence, _SMALLEST), hint, entry.label)


def _fidelity_chart(entries: Sequence[Fidelity], title: str, subtitle: str, joined: bool) -> Chart:
    series = []
    for place, codec in enumerate(sorted({entry.codec for entry in entries})):
        members = sorted(
            (entry for entry in entries if entry.codec == codec), key=lambda entry: entry.bytes
        )
        series.append(Series(codec, tuple(map(_point, members)), place, joined=joined))
    axis = Axis("KL(teacher ‖ cached), nats", _power, logarithmic=True)
    return chart(title, subtitle, figure(series, _SIZE_AXIS, axis))


def _named(entry: Fidelity) -> str:
    if entry.name or entry.state_bits is not None:
        return entry.name or entry.encoding
    return f"{entry.encoding}, k = {entry.k}"


def _title(entries: Sequence[Fidelity]) -> str:
    """Returns the divergence and the bytes of two codecs, or the range of a single codec.

    Take the lowest divergence of each codec; the bound is about the second lowest. The first cache
    is the smallest within the bound. The second is the smallest among the other codecs' most
    accurate caches within the bound.

    Example: `KL 0.00047 at 56 bytes (states, 4 bits), 0.4 at 77 (compact, k = 64)`
    """
    exact = {}
    for entry in sorted(entries, key=lambda entry: (entry.divergence, entry.bytes)):
        exact.setdefault(entry.codec, entry)
    if len(exact) > 1:
        _, bound, *_ = sorted(entry.divergence for entry in exact.values())
        first = min(
            (entry for entry in entries if entry.divergence <= _SAME * bound),
            key=lambda entry: entry.bytes,
        )
        second = min(
            (entry for codec, entry in exact.items() if codec != first.codec),
            key=lambda entry: (entry.divergence > _SAME * bound, entry.bytes),
        )
        return (
            f"KL {_divergence(first.divergence)} at {first.bytes:,.0f} bytes ({_named(first)}), "
            f"{_divergence(second.divergence)} at {second.bytes:,.0f} ({_named(second)})"
        )
    least, most = (pick(entries, key=lambda entry: entry.bytes) for pick in (min, max))
    if least == most:
        return f"{least.bytes:,.0f} bytes for {_divergence(least.divergence)} nats"
    return (
        f"from {least.bytes:,.0f} to {most.bytes:,.0f} bytes the divergence changes from "
        f"{_divergence(least.divergence)} to {_divergence(most.divergence)} nats"
    )


def _plan_charts(planned: Sequence[Fidelity]) -> list[Chart]:
    """Returns a chart for each temperature."""
    charts = []
    for temperature in dict.fromkeys(entry.temperature for entry in planned):
        entries = [entry for entry in planned if entry.temperature == temperature]
        title = f"T = {temperature}: {_title(entries)}"
        charts.append(_fidelity_chart(entries, title, _PLANNED, joined=True))
    return charts


def _plan_table(planned: Sequence[Fidelity]) -> Table:
    """Returns a row for each plan, with mass and divergence at each temperature."""
    titles, rows = ["encoding", "k", "bytes per position"], []
    fits = {(entry.encoding, entry.k, entry.temperature): entry for entry in planned}
    temperatures = dict.fromkeys(entry.temperature for entry in planned)
    for temperature in temperatures:
        titles += [f"mass, T = {temperature}", "KL, nats"]
    for encoding, k in dict.fromkeys((entry.encoding, entry.k) for entry in planned):
        row_fits = [fits.get((encoding, k, temperature)) for temperature in temperatures]
        size = next(f"{fit.bytes:,.1f}" for fit in row_fits if fit)
        cells = [
            text
            for fit in row_fits
            for text in ((percents(fit.mass), _divergence(fit.divergence)) if fit else ("–", "–"))
        ]
        rows.append([encoding, k, size, *cells])
    return Table(titles, rows)


def plan_contents(planned: Sequence[Fidelity]) -> list[Charts | Table | Note]:
    """Returns charts and a table of the caches that `plan_cache` measured."""
    note = "Planned caches at each temperature T of distillation: the teacher's mass in the cached "
    note += "ids, and KL(teacher ‖ cached). The tail's mass is spread evenly over the tokens "
    note += "that are not cached."
    return [Charts(_plan_charts(planned)), _plan_table(planned), Note(note)]


def _measured_chart(measured: Sequence[Fidelity]) -> Chart:
    title = f"Finished caches: {_title(measured)}"
    return _fidelity_chart(measured, title, "the tail counts as one class", joined=False)


def _measured_table(measured: Sequence[Fidelity]) -> Table:
    rows = []
    for entry in measured:
        sizes = [entry.k, f"{entry.bytes:,.1f}", percents(entry.mass)]
        rows.append([entry.name, entry.encoding, *sizes, _divergence(entry.divergence)])
    titles = ["cache", "encoding", "k", "bytes per position", "mass kept", "KL, nats"]
    return Table(titles, rows, texts=2)


def caches_section(
    planned: Sequence[Fidelity],
    measured: Sequence[Fidelity],
    compared: Sequence[CacheStudents],
    facts: Sequence[CacheFacts],
) -> Section | None:
    """Returns the section on fidelity and size of caches; None without caches.

    Args:
        planned: caches that `plan_cache` measured.
        measured: caches that `fidelity_report` measured.
        compared: students that `compare_caches` trained.
        facts: finished caches.
    """
    contents = plan_contents(planned) if planned else []
    charts = [_measured_chart(measured)] if measured else []
    charts += [_students_chart(compared)] if compared else []
    contents += [Charts(charts)] if charts else []
    if measured:
        contents.append(_measured_table(measured))
    if facts:
        contents.append(_facts_table(facts))
    return Section("Cache size against fidelity", contents) if contents else None


def _facts_table(facts: Sequence[CacheFacts]) -> Table:
    rows = []
    for cache in facts:
        sizes = [f"{cache.ids:,.1f}", f"{cache.position_bytes:,.1f}", f"{cache.examples:,}"]
        k = str(cache.truncation_factor)
        rows.append([cache.name, cache.encoding, k, *sizes, megabytes(cache.bytes)])
    titles = ["cache", "encoding", "k", "ids kept", "bytes per position", "examples", "on disk"]
    return Table(titles, rows, texts=2)


def _students_chart(compared: Sequence[CacheStudents]) -> Chart:
    least, most = (
        pick(compared, key=lambda students: students.bytes_per_position) for pick in (min, max)
    )
    title = (
        f"Agreement with the teacher: {percents(least.agreement)} with {least.name}, "
        f"{percents(most.agreement)} with {most.name}"
    )
    series = []
    for place, students in enumerate(compared):
        size = students.bytes_per_position
        hint = f"{students.name}: {size:,.0f} bytes, {percents(students.agreement)}"
        point = Point(size, students.agreement, hint, students.name, students.deviation)
        series.append(Series(students.name, (point,), place, joined=False))
    note = "the same student trained from each cache; bars: standard deviation over seeds"
    return chart(title, note, figure(series, _SIZE_AXIS, AGREEMENT.y_axis()))


def calibration_section(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> Section | None:
    """Returns the section with calibration errors and reliability diagrams; None without any."""
    charts = [measure_chart(runs, CALIBRATION)]
    seen = set()
    for cache in caches:
        if cache.reliability is not None and cache.teacher not in seen:
            charts.append(_reliability_chart(cache, len(seen)))
            seen.add(cache.teacher)
    charts = list(filter(None, charts))
    return Section("Calibration", [Charts(charts)]) if charts else None


def _reliability_chart(cache: CacheFacts, place: int) -> Chart:
    reliability = cache.reliability
    points = tuple(
        Point(x, y, f"{count:,} predictions of mean probability {x:.1%}: {y:.1%} correct")
        for x, y, count in zip(
            reliability.confidence, reliability.accuracy, reliability.counts, strict=True
        )
        if count >= _MIN_IN_BIN
    )
    title = f"The teacher's expected calibration error: {100.0 * reliability.error:.1f} points"
    note = (
        f"predictions at {sum(reliability.counts):,} masked positions of {cache.name}; "
        "the dotted line is perfect calibration"
    )
    x_axis = Axis("probability of the prediction", whole_percents, limits=(0.0, 1.0))
    y_axis = Axis("share of correct predictions", whole_percents, limits=(0.0, 1.0))
    series = Series("teacher", points, place % NUM_COLORS)
    return chart(title, note, figure([series], x_axis, y_axis, diagonal=True))
