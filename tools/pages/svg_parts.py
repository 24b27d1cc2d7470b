"""What charts are made of: points, series, and the elements that draw them."""

import dataclasses
import math
from collections.abc import Sequence

from tools.pages.html_page import NUM_COLOURS, Markup, element

# Units; a chart is shown at about one unit a pixel.
WIDTH = 400
HEIGHT = 250
# Above the plot.
TOP = 12
# From one line of text to the next.
LINE = 14
_DASHES = (None, "7 3", "2 2.5", "9 3 2 3", "4 2", "12 4", "1.5 4", "6 2 1.5 2 1.5 2")


@dataclasses.dataclass(frozen=True)
class Point:
    """A point, with what is said of it.

    Attributes:
        x: on the horizontal axis.
        y: on the vertical axis.
        hint: shown when one points at it.
        label: stands beside it where there is room.
        spread: half the length of its error bar, in units of `y`.
    """

    x: float
    y: float
    hint: str = ""
    label: str = ""
    spread: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it can be drawn."""
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: stands at the end of the line.
        points: in the order in which a line joins them.
        place: number of the colour and the dashes; beyond those that there are,
            the line is grey and has no label.
        joined: whether a line joins the points.
    """

    name: str
    points: tuple[Point, ...]
    place: int = 0
    joined: bool = True

    @property
    def finite(self) -> tuple[Point, ...]:
        """The points that can be drawn."""
        return tuple(point for point in self.points if point.is_finite)

    @property
    def is_grey(self) -> bool:
        """Whether there is no colour for it."""
        return self.place >= NUM_COLOURS

    @property
    def colour(self) -> str:
        """Its colour in the style sheet."""
        return "var(--rest)" if self.is_grey else f"var(--series{self.place})"

    @property
    def dashes(self) -> str | None:
        """Its `stroke-dasharray`."""
        return None if self.is_grey else _DASHES[self.place]


def text(x: float, y: float, words: str, **attributes: object) -> Markup:
    """Returns words at a place."""
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    """Returns a line from one place to another."""
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{name: f"{at:.1f}" for name, at in places.items()}, **attributes)


def hint(words: str) -> Markup | None:
    """Returns what is shown when one points at something; None for no words."""
    return element("title", words) if words else None


def svg(parts: Sequence[Markup], description: str, height: float = HEIGHT) -> Markup:
    """Returns a chart of these parts, which `description` tells in words."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=description,
    )
