"""Pages and charts read back: a strict parser, and values found from a chart's own ticks."""

import html.parser
import re
import xml.etree.ElementTree as ElementTree

VOID = {"br", "hr", "link", "meta", "wbr"}


class _Parser(html.parser.HTMLParser):
    """Collects what is in a page, and refuses end tags that do not fit."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def parse(page: str) -> _Parser:
    """Parses a page that must be well formed, and must fetch and run nothing."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "iframe", "object", "img", "base", "form"}
    for tag, attributes in parser.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert tag == "link" or "href" not in attributes
    assert "url(" not in page and "@import" not in page
    return parser


def charts(page: str) -> list[ElementTree.Element]:
    """Returns the charts of a page, in its order."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


def _number(text: str) -> float:
    factor = 0.01 if text.endswith("%") else 1.0
    return factor * float(text.rstrip("%").replace(",", ""))


def read_points(
    chart: ElementTree.Element, *, log_x: bool = False, log_y: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """Returns the values of each series, measured by the ticks beside the axes."""
    import numpy as np

    ticks = [one for one in chart.iter("text") if one.get("class") == "tick"]
    across = [one for one in ticks if one.get("text-anchor") == "middle"]
    up = [one for one in ticks if one.get("text-anchor") == "end"]

    def measure(found, name, shift, logarithmic):
        values = np.array([_number(one.text) for one in found])
        places = np.array([float(one.get(name)) - shift for one in found])
        assert len(found) >= 2
        slope, start = np.polyfit(places, np.log(values) if logarithmic else values, 1)
        return lambda place: float(
            np.exp(slope * place + start) if logarithmic else slope * place + start
        )

    x, y = measure(across, "x", 0.0, log_x), measure(up, "y", 4.0, log_y)
    found = {}
    for group in chart.iter("g"):
        if group.get("class") == "series":
            line = group.find("polyline")
            if line is not None:
                pairs = [pair.split(",") for pair in line.get("points").split()]
            else:
                circles = [one for one in group.iter("circle") if one.get("class") == "point"]
                pairs = [(one.get("cx"), one.get("cy")) for one in circles]
            found[group.get("data-name")] = [(x(float(a)), y(float(b))) for a, b in pairs]
    return found


def labels(chart: ElementTree.Element) -> list[tuple[str, float, float]]:
    """Returns text, x and y of each label."""
    return [
        (one.text, float(one.get("x")), float(one.get("y")))
        for one in chart.iter("text")
        if one.get("class") == "label"
    ]
