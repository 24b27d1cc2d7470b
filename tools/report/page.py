"""HTML pages in one file: nothing is fetched, no script runs, every text is escaped.

A page is made of the parts below, which jinja2 writes by `page.html.jinja`.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.base.errors import InputError
from tools.report import charts

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_PACKAGES = ("jinja2", "matplotlib")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that scrolls by itself where it is wider than the page.

    Attributes:
        titles: of the columns.
        rows: the cells; the first of each names its row.
        texts: how many columns at the left hold text; the others hold numbers.
        best: (row, column) of the cells to point out.
        summary: if given, the table is shown on demand, behind these words.
    """

    kind: ClassVar[str] = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    best: Collection[tuple[int, int]] = ()
    summary: str | None = None


@dataclasses.dataclass(frozen=True)
class Note:
    """A remark in smaller letters, and what of it is important."""

    kind: ClassVar[str] = "note"
    text: str
    important: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart below a title, which is its result, and a subtitle.

    `values` has the exact values of the points, for readers without a pointer.
    """

    title: str
    subtitle: str
    svg: "Markup"
    values: Sequence[str]


def chart(title: str, subtitle: str, drawn: "Figure") -> Chart:
    """Returns a chart, described by its title for whoever does not see it."""
    return Chart(title, subtitle, charts.svg(drawn, title), charts.hints(drawn))


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts, beside each other where there is room."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own."""

    title: str
    contents: Sequence[Table | Note | Charts]


def expect_packages() -> None:
    """Raises InputError unless the packages are there that pages are made with."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            hint = "pip install 'offline-distill[report]'"
            raise InputError(name, "an installed package", "none", hint)


def render(template: str, **values: Any) -> str:
    """Returns a page made by a template of this folder."""
    expect_packages()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values) + "\n"


def report_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns a page of sections, below a heading and a lead of one or two sentences."""
    return render("report.html.jinja", title=title, lead=lead, sections=sections)
