"""A strict parser of HTML pages, and readers of their charts."""

import html.parser
import re
import xml.etree.ElementTree as ElementTree

VOID = {"br", "hr", "link", "meta", "wbr"}


class _Parser(html.parser.HTMLParser):
    """Collects the content of a page and rejects end tags without a matching start tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        """All texts of the page, joined with single spaces."""
        return " ".join("".join(self.texts).split())

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
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def parse(page: str) -> _Parser:
    """Parses a page, which must be well-formed and must not fetch or run anything."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "iframe", "object", "img", "image", "base", "form"}
    for tag, attributes in parser.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert tag == "link" or "href" not in attributes
        assert attributes.get("xlink:href", "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", page)
    return parser


def charts(page: str) -> dict[str, ElementTree.Element]:
    """Returns the charts of a page by their descriptions, in page order."""
    elements = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
    return {chart.get("aria-label"): chart for chart in elements}


def hints(chart: ElementTree.Element) -> dict[str, list[str]]:
    """Returns the hints of the points of each series of a chart."""
    groups = [group for group in chart.iter() if group.get("data-name") is not None]
    return {group.get("data-name"): _texts(group, "title") for group in groups}


def texts(chart: ElementTree.Element) -> list[str]:
    """Returns the texts of a chart: ticks, titles, labels and the legend."""
    return _texts(chart, "text")


def _texts(element: ElementTree.Element, tag: str) -> list[str]:
    return [inner.text for inner in element.iter() if inner.tag.rpartition("}")[2] == tag]
