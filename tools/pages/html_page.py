"""HTML pages in one file: nothing is fetched, no script runs, every text is escaped.

Elements are built as trees: whatever is not markup already is escaped when it
becomes part of one, so that no name of a run and no token can break out.
"""

import html
from collections.abc import Sequence

# No script, no request: style sheets inside the page, and pictures that are in it.
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Elements that have no end tag.
_VOID = {"br", "hr", "link", "meta", "wbr"}

# Colours of series, dark enough on white and, in the second list, light enough on black; each
# pair can be told apart by the colour-blind (after Okabe and Ito, and Tol), and charts give each
# its own dashes for paper without colour.
_LIGHT_SERIES = (
    "#0060a8",
    "#c84a00",
    "#00785c",
    "#a8327f",
    "#806000",
    "#5a4fcf",
    "#0a7f94",
    "#8a3b2a",
)
_DARK_SERIES = (
    "#5fb4f5",
    "#ff8f4d",
    "#3ecfa5",
    "#f08cc8",
    "#e3c04a",
    "#ada4ff",
    "#56d0e0",
    "#e39a88",
)
NUM_COLOURS = len(_LIGHT_SERIES)

_LIGHT = {
    "paper": "#ffffff",
    "panel": "#f6f7f9",
    "ink": "#16181d",
    "soft": "#545b68",
    "rule": "#d5d9e0",
    "grid": "#e6e9ee",
    "rest": "#8d95a3",
    "right": "#00694f",
    "wrong": "#a63b00",
    "mark": "#dcebfb",
    "kept": "#e0f2ea",
    "other": "#fde7d6",
    "bar": "#9cc4ea",
}
_DARK = {
    "paper": "#14161a",
    "panel": "#1d2026",
    "ink": "#e9ebef",
    "soft": "#a6adb9",
    "rule": "#3a404b",
    "grid": "#2a2f38",
    "rest": "#727b8a",
    "right": "#4fd6ae",
    "wrong": "#ffa06a",
    "mark": "#1d3b59",
    "kept": "#17402f",
    "other": "#54301a",
    "bar": "#2f5f8d",
}


def _variables(colours: dict[str, str], series: Sequence[str]) -> str:
    named = {**colours, **{f"series{index}": colour for index, colour in enumerate(series)}}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


# Paper is white whatever the screen is, so that print comes last.
_COLOURS = f"""
:root {{ color-scheme: light dark; {_variables(_LIGHT, _LIGHT_SERIES)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK, _DARK_SERIES)} }} }}
@media print {{ :root {{ color-scheme: light; {_variables(_LIGHT, _LIGHT_SERIES)} }} }}
"""

_STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 20px 48px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 19px; line-height: 1.3; margin: 36px 0 6px; break-after: avoid; }
h3 { font-size: 15px; margin: 18px 0 4px; break-after: avoid; }
p { margin: 4px 0 10px; max-width: 80ch; overflow-wrap: anywhere; }
.lead, .note { color: var(--soft); }
.note { font-size: 13.5px; }
.scroll { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: separate; border-spacing: 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 6px; }
th, td { padding: 5px 14px 5px 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--rule); vertical-align: bottom; }
.scroll td, .scroll th { white-space: nowrap; }
.scroll tr > :first-child { position: sticky; left: 0; background: var(--paper); }
td.number, th.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 2px; }
tbody th { font-weight: 600; }
td.best { font-weight: 700; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr));
  gap: 22px 26px; margin: 12px 0; }
figure { margin: 0; break-inside: avoid; max-width: 460px; }
figcaption { line-height: 1.35; }
figcaption b { display: block; font-size: 15px; }
figcaption span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; margin-top: 4px; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--rule); stroke-width: 1; }
svg .reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
svg .leader { stroke: var(--rest); stroke-width: 1; stroke-dasharray: 1 3; }
@media print {
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  table { font-size: 9pt; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .scroll td, .scroll th { padding-right: 8px; }
  .scroll td:not(.number) { white-space: normal; overflow-wrap: anywhere; }
  .scroll thead th { white-space: normal; }
  .charts { grid-template-columns: 1fr 1fr; }
  details:not([open]) { display: none; }
}
@page { margin: 14mm; }
"""


class Markup(str):
    """Text that is markup already, and is not escaped again."""


def escape(text: object) -> Markup:
    """Returns what stands for a text in a page; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an element.

    Args:
        name: of the tag.
        *children: markup as it is, all else escaped; None is nothing.
        **attributes: without their None values; a `_` at the end of a name is
            left out (`class_`), others become hyphens (`text_anchor`). Names of
            capitals within, such as SVG's `viewBox`, stay.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Sequence[object]) -> Markup:
    """Returns elements and texts one after the other; None is nothing."""
    return Markup("".join(escape(child) for child in children if child is not None))


def table(
    titles: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    texts: int = 1,
    best: Sequence[Sequence[int]] = (),
    caption: str | None = None,
) -> Markup:
    """Returns a table that scrolls by itself where it is wider than the page.

    Args:
        titles: of the columns.
        rows: the cells; the first of each names its row.
        texts: how many columns at the left hold text; the others hold numbers, and
            are flush right.
        best: (row, column) of the cells to point out.
        caption: above it.
    """
    head = element("tr", *(_cell("th", title, at >= texts) for at, title in enumerate(titles)))
    pointed = {(row, column) for row, column in best}
    body = (
        element(
            "tr",
            *(
                _cell("td" if column else "th", value, column >= texts, (row, column) in pointed)
                for column, value in enumerate(values)
            ),
        )
        for row, values in enumerate(rows)
    )
    inner = element(
        "table",
        None if caption is None else element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    # Reached by the keyboard, too, where it scrolls.
    return element("div", inner, class_="scroll", tabindex=0)


def _cell(name: str, value: object, is_number: bool, is_best: bool = False) -> Markup:
    classes = " ".join(["number"] * is_number + ["best"] * is_best)
    return element(name, value, class_=classes or None)


def section(title: str, *children: object) -> Markup:
    """Returns a part of a page under a heading of its own."""
    return element("section", element("h2", title), *children)


def figure(title: str, subtitle: str, chart: Markup) -> Markup:
    """Returns a chart under what it shows, as a sentence, and what is drawn."""
    caption = element("figcaption", element("b", title), element("span", subtitle))
    return element("figure", caption, chart)


def page(title: str, lead: object, *body: object, style: str = "") -> str:
    """Returns a whole page.

    Args:
        title: its heading, and what the browser's tab says.
        lead: one or two sentences below the heading.
        *body: sections.
        style: rules of its own beside those that all pages share.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(
            '<meta http-equiv="Content-Security-Policy" '
            f'content="{html.escape(CONTENT_SECURITY_POLICY, quote=False)}">'
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        # Else a browser asks the server for an icon.
        element("link", rel="icon", href="data:,"),
        element("style", Markup(_COLOURS + _STYLE + style)),
    )
    main = element("main", element("h1", title), element("p", lead, class_="lead"), *body)
    return f'<!DOCTYPE html>\n<html lang="en">{head}<body>{main}</body></html>\n'
