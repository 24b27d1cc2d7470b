"""Self-contained HTML pages: nothing is fetched, no script runs, every text is escaped.

A page consists of the elements below. The template `page.html.jinja` renders them.
"""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.base.errors import InputError
from tools.report import charts

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_FLAG = re.compile(r"(?<!\S)--\S+")
_PACKAGES = ("jinja2", "matplotlib")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, which scrolls horizontally if it is wider than the page.

    Attributes:
        titles: titles of the columns.
        rows: cells of the rows. The first cell is the name of the row.
        texts: number of columns with text, from the left. The other columns have numbers.
        best: (row, column) of the cells in bold.
        summary: title of a collapsed table; None for a table that is always visible.
    """

    kind: ClassVar[str] = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    best: Collection[tuple[int, int]] = ()
    summary: str | None = None


@dataclasses.dataclass(frozen=True)
class Note:
    """A remark in small letters, and a part of it in bold."""

    kind: ClassVar[str] = "note"
    text: str
    important: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with a title, which states its result, and a subtitle.

    `values` has the exact values of the points as text.
    """

    title: str
    subtitle: str
    svg: "Markup"
    values: Sequence[str]


def chart(title: str, subtitle: str, drawn: "Figure") -> Chart:
    """Returns a chart whose title is also its description for screen readers."""
    return Chart(title, subtitle, charts.svg(drawn, title), charts.hints(drawn))


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts, side by side if there is room."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page, with its heading."""

    title: str
    contents: Sequence[Table | Note | Charts]


def expect_packages() -> None:
    """Raises InputError unless the packages that pages need are installed."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            hint = "pip install 'offline-distill[report]'"
            raise InputError(name, "an installed package", "none", hint)


def _unbroken_flags(text: str) -> "Markup":
    """Returns a text as HTML in which no line ends within a flag that fits into a line."""
    from markupsafe import Markup, escape

    return Markup(_FLAG.sub(r'<span class="flag">\g<0></span>', str(escape(text))))


def render(template: str, **values: Any) -> str:
    """Renders a template of this folder."""
    expect_packages()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["unbroken_flags"] = _unbroken_flags
    return environment.get_template(template).render(**values) + "\n"


def report_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns a page with a heading, one or two introductory sentences (`lead`) and sections."""
    return render("report.html.jinja", title=title, lead=lead, sections=sections)
