"""The linter of the project's English."""

import pytest

from tools.dev import lint_words


def _messages(source: str) -> list[str]:
    return [finding.message for finding in lint_words.check_python("a.py", source)]


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("# The run goes on.\n", "'goes on'"),
        ('"""A one\'s own thing."""\n', "one's own"),
        ('x = f"{1} beside it"\n', "'beside it'"),
        ("# Unlabelled rows.\n", "'Unlabelled': write label…"),
        ('"""Returns normalised rows."""\n', "'normalised': write -iz…"),
        ("run_colours = 1\n", "'colours': write color…"),
        ('"""It distils the teacher."""\n', "'distils': write distill…"),
        ('"""Under a free licence."""\n', "'licence': write license…"),
        ('def f():\n    """What it holds."""\n', "opens with 'What'"),
        ("def f(told):\n    pass\n", "variable 'told'"),
        ("places = 1\n", "variable 'places'"),
        ("for one in ():\n    pass\n", "variable 'one'"),
        ("def test_it():\n    pass\n", "test_it"),
        (f'raise InputError(None, "{"word " * 31}")\n', "sentence of 31 words"),
        (f'x = setting(1, f"{"word " * 30}{{x}} end")\n', "sentence of 32 words"),
    ],
)
def test_each_rule_has_a_finding(source: str, fragment: str) -> None:
    (message,) = _messages(source)
    assert fragment in message


@pytest.mark.parametrize(
    "source",
    [
        '"""Reads records."""\n',
        f'"""{"word " * 31}"""\n',
        f'raise InputError(None, "{"word " * 20}. {"word " * 20}")\n',
        "x.places = 1\n",
        # A key of the declarations of corpora and tasks.
        "licence = 'title: x\\nlicence: y'\n",
        '"""Labels of DistilBERT, optimistic noise and organisms."""\n',
        "def test_records_are_read_once():\n    pass\n",
    ],
)
def test_plain_sources_have_no_findings(source: str) -> None:
    assert not _messages(source)


def test_lines_of_findings_within_a_text_are_counted() -> None:
    (finding,) = lint_words.check_python("a.py", '"""Reads.\n\nIt goes on.\n"""\n')
    assert (finding.path, finding.line) == ("a.py", 3)


def test_code_blocks_of_pages_are_left_out() -> None:
    page = "It goes on.\n```\nIt goes on.\n```\n"
    assert [finding.line for finding in lint_words.check_page("a.md", page)] == [1]


def test_the_exit_status_tells_of_findings(tmp_path, capsys) -> None:
    path = tmp_path / "a.py"
    path.write_text("kept = 1\n", encoding="utf-8")
    assert lint_words.main(["", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{path}:1: variable 'kept'")
    path.write_text("stored = 1\n", encoding="utf-8")
    assert lint_words.main(["", str(path)]) == 0
