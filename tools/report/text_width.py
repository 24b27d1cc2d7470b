"""Widths of texts in columns: one for a letter, two for a Chinese character."""

import unicodedata

# Marks that stand on the letter before them, and what is not seen at all.
_NO_WIDTH = ("Mn", "Me", "Cf")


def display_width(text: str) -> int:
    """Returns how many columns a terminal gives a text.

    Example: `a春` takes 3.
    """
    return sum(map(_width, text))


def _width(letter: str) -> int:
    if unicodedata.category(letter) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def clipped(text: str, most: int) -> str:
    """Returns as much of a text's beginning as `most` columns hold."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _width(letter)
        if taken > most:
            return text[:place]
    return text


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Fills a text up with spaces to `width` columns, before it where `right` says so."""
    fill = " " * max(0, width - display_width(text))
    return fill + text if right else text + fill


def visible(text: str) -> str:
    """Returns a text with escapes for what does not print, such as a terminal's commands.

    Example: the tab is written `\\x09`, a line break `\\x0a`.
    """
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else _escape(letter)
        for letter in text
    )


def _escape(letter: str) -> str:
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def wrapped(pieces: list[str], width: int) -> list[str]:
    """Breaks a text between its parts into lines of at most `width` columns; cuts longer parts.

    Example: `春天`, `来了`, ` now` in 8 columns are the lines `春天来了` and `now`.
    """
    lines, line = [], ""
    for piece in pieces:
        if line and display_width(line) + display_width(piece.rstrip()) > width:
            lines.append(line.rstrip())
            line, piece = "", piece.lstrip()
        while display_width(piece) > width:
            cut = clipped(piece, width)
            lines.append(cut)
            piece = piece[len(cut) :]
        line += piece
    if line.strip():
        lines.append(line.rstrip())
    return lines
