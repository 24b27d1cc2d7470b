"""Widths of texts in terminal columns: one for a letter, two for a Chinese character."""

import unicodedata

# Categories of combining marks and of invisible characters.
_NO_WIDTH = ("Mn", "Me", "Cf")


def display_width(text: str) -> int:
    """Returns the number of columns of a text in a terminal.

    Example: `a春` takes 3.
    """
    return sum(map(_width, text))


def _width(letter: str) -> int:
    if unicodedata.category(letter) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def clip(text: str, most: int) -> str:
    """Returns the longest beginning of a text that fits in `most` columns."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _width(letter)
        if taken > most:
            return text[:place]
    return text


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Pads a text with spaces to `width` columns: at its end, or at its beginning if `right`."""
    fill = " " * max(0, width - display_width(text))
    return fill + text if right else text + fill


def escape_unprintable(text: str) -> str:
    """Returns a text with escapes for unprintable characters, such as terminal control codes.

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


def wrap(pieces: list[str], width: int) -> list[str]:
    """Joins pieces of text to lines of at most `width` columns; longer pieces are cut.

    Example: `春天`, `来了`, ` now` in 8 columns are the lines `春天来了` and `now`.
    """
    lines, line = [], ""
    for piece in pieces:
        if line and display_width(line) + display_width(piece.rstrip()) > width:
            lines.append(line.rstrip())
            line, piece = "", piece.lstrip()
        while display_width(piece) > width:
            cut = clip(piece, width)
            lines.append(cut)
            piece = piece[len(cut) :]
        line += piece
    if line.strip():
        lines.append(line.rstrip())
    return lines
