"""Text tables for the terminal."""

from collections.abc import Sequence


def aligned_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table: the first column flush left, the others flush right.

    Args:
        titles: titles of the columns, with a line below them.
        rows: the cells; each row has one cell per title.
    """
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (titles, *rows)
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
