"""Pages: what is escaped, and what a browser is allowed."""

from hypothesis import given
from hypothesis import strategies as st

from tests.tools.page_reading import parse
from tools.pages import html_page
from tools.pages.html_page import Markup, element


def test_elements() -> None:
    assert element("p", "a < b", element("b", 1), None, class_="x", data_p='"') == (
        '<p class="x" data-p="&quot;">a &lt; b<b>1</b></p>'
    )
    assert element("meta", name="viewport") == '<meta name="viewport">'
    assert html_page.escape(Markup("<b>")) == "<b>"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_texts_stay_texts(text: str) -> None:
    page = html_page.page(
        text, text, html_page.table([text], [[text]]), element("p", text, id=text)
    )
    found = parse(page)
    assert found.tables == [[[text], [text]]]
    assert [attributes["id"] for _, attributes in found.tags if "id" in attributes] == [text]


def test_the_page_is_closed_to_the_world() -> None:
    page = html_page.page("title", "lead", html_page.section("part", element("p", "x")))
    found = parse(page)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    meta = [attributes for tag, attributes in found.tags if tag == "meta"]
    assert {"charset": "utf-8"} in meta
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in meta
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    } in meta
    assert " ".join(found.text).split() == ["title", "title", "lead", "part", "x"]


def test_tables() -> None:
    table = html_page.table(["a", "b"], [["x", 1], ["y", 2]], best=[(1, 1)], caption="c")
    assert '<td class="number best">2</td>' in table and '<td class="number">1</td>' in table
    assert "<th>x</th>" in table and "<caption>c</caption>" in table
