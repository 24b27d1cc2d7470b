"""HTML pages: escaping, the content security policy, and required packages."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from tests.tools.page_reading import parse
from tools.report import page
from tools.report.page import Note, Section, Table


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_texts_are_escaped_in_pages(text: str) -> None:
    contents = [Table([text], [[text]]), Note(text, text), Table([text], [[text]], summary=text)]
    parsed = parse(page.report_page(text, text, [Section(text, contents)]))
    assert parsed.tables == [[[text], [text]]] * 2
    # The text is the title, heading, lead, section and summary.
    assert not text.strip() or parsed.texts.count(text) >= 5


def test_flags_in_notes_are_escaped_and_unbroken() -> None:
    note = Note("run --corpus=<b> a--b", "and --documents=lines")
    text = page.report_page("", "", [Section("", [note])])
    assert text.count('<span class="flag">') == 2
    assert '<span class="flag">--corpus=&lt;b&gt;</span> a--b' in text
    assert "run --corpus=<b> a--b and --documents=lines" in parse(text).text


def test_page_forbids_scripts_and_external_content() -> None:
    text = page.report_page("title", "lead", [Section("part", [Note("note")])])
    parsed = parse(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    metas = [attributes for tag, attributes in parsed.tags if tag == "meta"]
    assert {"charset": "utf-8"} in metas
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    } in metas
    assert parsed.text == "title title lead part note"


def test_numbers_are_right_aligned_and_the_best_are_bold() -> None:
    table = Table(["a", "b"], [["x", "1"], ["y", "2"]], best=[(1, 1)])
    text = page.report_page("", "", [Section("", [table])])
    assert '<td class="number best">2</td>' in text and '<td class="number">1</td>' in text
    assert "<th>x</th>" in text and '<th class="number">b</th>' in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_package_is_named_with_its_install_command(monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        page.expect_packages()
    assert caught.value.subject == package
    assert caught.value.hint == "pip install 'offline-distill[report]'"
