"""Cleaning steps that remove markup and other non-text from documents."""

import html
import re
from collections.abc import Callable, Sequence

_BREAK_TAG = re.compile(r"<br\s*/?>|</p>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,1000}>")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")
# Possessive quantifiers prevent backtracking, which takes quadratic time on a line of many `=`.
_HEADING = re.compile(r"^(?=.{1,300}$)(?: ?=)++ (.*?) (?:= ?)++$", re.MULTILINE)
_SPLIT_SIGN = re.compile(r" @([-,.])@ ")
_SUBTITLE_STYLE = re.compile(r"\{[^{}\n]*\}|[♪#*]")
# Possessive quantifiers match blank lines only once, even if no dash follows them.
_SUBTITLE_DASH = re.compile(r"^(\s*+)([-–—]++\s*+)?", re.MULTILINE)
_MENTION = re.compile(r"\[(?:id|club)\d{1,30}(?::[^|\]]{0,1000})?\|([^\]]{0,1000})\]")
# No character has such a number, and Python refuses to parse it.
_HUGE_NUMBER = re.compile(r"&#[0-9]{1000,}+;?")
_BOOK_BEGINS = re.compile(r"^\*\*\* ?START OF [^\n]*$", re.MULTILINE)
_BOOK_ENDS = re.compile(r"^\*\*\* ?END OF [^\n]*$", re.MULTILINE)


def _drop_first_line(text: str) -> str:
    """Removes the first line: `DataBaseItem: 6_57…\\nТекст` → `Текст`."""
    return text.partition("\n")[2]


def _gutenberg(text: str) -> str:
    """Keeps the text between the marks of Project Gutenberg, with one line per paragraph."""
    begin, end = _BOOK_BEGINS.search(text), _BOOK_ENDS.search(text)
    text = text[begin.end() if begin else 0 : end.start() if end else len(text)]
    return "\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))


def _html(text: str) -> str:
    """Removes tags, and unescapes up to twice: `现在<br>呢&nbsp;？` → `现在\\n呢 ？`."""
    for _ in range(2):
        text = html.unescape(_HUGE_NUMBER.sub("", text))
    return _TAG.sub("", _BREAK_TAG.sub("\n", text))


def _line_breaks(text: str) -> str:
    """Converts line ends: `\\r\\n` and `\\r` → `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _mentions(text: str) -> str:
    """Replaces mentions by their names: `[id12890229|Евгений], можно` → `Евгений, можно`."""
    return _MENTION.sub(r"\1", text)


def _spaces(text: str) -> str:
    """Collapses runs of spaces to one space, and removes blank lines."""
    return _BLANK_LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def _subtitles(text: str) -> str:
    """Removes styles, notes and dashes of subtitles: `{\\an8}- Где он? ♪` → `Где он? `."""
    text = _SUBTITLE_STYLE.sub("", text)
    return _SUBTITLE_DASH.sub(lambda match: "" if match[2] else match[1], text)


def _wikitext(text: str) -> str:
    """Removes marks of headings and joins split hyphens.

    ` = = Gameplay = = ` → `Gameplay`, `role @-@ playing` → `role-playing`.
    """
    lines = "\n".join(line.strip() for line in text.split("\n"))
    return _SPLIT_SIGN.sub(r"\1", _HEADING.sub(r"\1", lines))


# Cleaning steps, keyed by their names in a declaration's `cleaning`.
STEPS: dict[str, Callable[[str], str]] = {
    "drop_first_line": _drop_first_line,
    "gutenberg": _gutenberg,
    "html": _html,
    "line_breaks": _line_breaks,
    "mentions": _mentions,
    "spaces": _spaces,
    "subtitles": _subtitles,
    "wikitext": _wikitext,
}


def clean(text: str, steps: Sequence[str]) -> str:
    """Returns a text after applying some of `STEPS` in the given order."""
    for step in steps:
        text = STEPS[step](text)
    return text
