"""Examples as an HTML page."""

from collections.abc import Sequence

from tools.pages.html_page import Markup, element, join, page
from tools.pages.inspect_text import facts, outcome, percent, rank
from tools.pages.shown_examples import (
    KEPT,
    MASKED,
    REPLACED,
    Guess,
    MaskedPosition,
    Piece,
    ShownExample,
)

_STYLE = """
article { border-top: 1px solid var(--rule); margin-top: 30px; padding-top: 4px; }
article h2 { margin: 14px 0 2px; }
.sentence { font-size: 19px; line-height: 2; margin: 12px 0; max-width: 62em;
  overflow-wrap: anywhere; }
.sentence i { font-style: normal; border-left: 2px solid var(--series0); padding-left: 2px; }
mark { display: inline-block; line-height: 1.3; margin: 0 1px; padding: 0 4px; color: inherit;
  background: var(--mark); border: 1px solid var(--soft); border-radius: 4px;
  print-color-adjust: exact; }
mark.kept { background: var(--kept); border-style: dotted; }
mark.replaced { background: var(--other); border-style: dashed; }
mark.masked { font-size: .8em; letter-spacing: .03em; }
mark sup { font-size: 11px; line-height: 1; margin-left: 3px; font-weight: 600; }
.positions { width: 100%; }
.positions tbody th, .positions td { vertical-align: baseline; }
article .note { max-width: none; }
.positions .token { font-size: 16px; font-weight: 600; overflow-wrap: anywhere; }
.positions .guesses { width: 60%; }
.guess { display: inline-block; margin: 0 6px 4px 0; padding: 0 7px; border-radius: 4px;
  border: 1px solid var(--rule); overflow-wrap: anywhere; print-color-adjust: exact;
  background: linear-gradient(90deg, var(--bar) var(--p), transparent var(--p)); }
.guess small { font-size: 12.5px; }
.guess.right { border: 2px solid var(--right); font-weight: 600; }
.yes { color: var(--right); font-weight: 600; }
.no { color: var(--wrong); }
.legend mark { margin-right: 3px; }
.legend span { margin-right: 18px; white-space: nowrap; display: inline-block; }
@media (max-width: 640px) {
  .sentence { font-size: 17px; }
  .positions thead { display: none; }
  .positions, .positions tbody { display: block; }
  .positions tr { display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 8px 0;
    border-bottom: 1px solid var(--rule); }
  .positions th, .positions td { border: 0; padding: 0; }
  .positions td[data-title]::before { content: attr(data-title) " "; color: var(--soft);
    font-weight: 400; font-size: 13px; }
  .positions .guesses { flex-basis: 100%; width: auto; }
}
"""


def _bdi(text: str) -> Markup:
    """Returns a token whose direction of writing does not reach beyond it."""
    return element("bdi", text)


def _mark(text: str, treatment: str, number: int | None, hint: str | None) -> Markup:
    token = "[MASK]" if treatment == MASKED else _bdi(text)
    index = None if number is None else element("sup", number)
    return element("mark", token, index, class_=treatment, title=hint)


def _hint(position: MaskedPosition) -> str:
    treatment = "" if position.treatment == MASKED else f", {position.treatment}"
    text = f"{position.number}{treatment}: {position.label}"
    if position.teacher is not None:
        first = position.teacher.guesses[0]
        text += f"; the teacher's first guess: {first.text}, {percent(first.probability)}"
    return text


def _piece(piece: Piece, positions: Sequence[MaskedPosition], borders: bool) -> Markup:
    if piece.number is not None:
        position = positions[piece.number - 1]
        drawn = _mark(piece.text, position.treatment, piece.number, _hint(position))
    else:
        drawn = element("i", piece.text) if borders and piece.new_word else piece.text
    # Where no space stands, a line may end all the same beside a mark.
    return join([" " if piece.space else None, drawn])


def _sentence(example: ShownExample) -> list[Markup]:
    borders = not example.positions
    return [
        element(
            "p",
            *(_piece(piece, example.positions, borders) for piece in segment),
            class_="sentence",
            dir="auto",
        )
        for segment in example.segments
    ]


def _guess(guess: Guess) -> Markup:
    share = f"--p: {100.0 * guess.probability:.2f}%"
    name = "guess right" if guess.right else "guess"
    number = element("small", percent(guess.probability))
    return element("span", _bdi(guess.text), " ", number, class_=name, style=share)


def _row(position: MaskedPosition) -> Markup:
    number = element("th", position.number, scope="row", class_="number")
    label = element("td", _bdi(position.label), class_="token")
    word = position.teacher
    if word is None:
        treatment = position.treatment
        shown = "" if treatment == MASKED else join([": ", _bdi(position.shown)])
        return element("tr", number, label, element("td", treatment, shown))
    sign = element("span", "✓ right", class_="yes") if word.right else None
    return element(
        "tr",
        number,
        label,
        element("td", percent(word.label_probability), class_="number", data_title="p"),
        element("td", rank(position), class_="number", data_title="rank"),
        element("td", sign or element("span", "✗ wrong", class_="no")),
        element("td", *map(_guess, word.guesses), class_="guesses"),
        element("td", percent(word.rest), class_="number", data_title="other"),
        element("td", percent(word.tail), class_="number", data_title="tail"),
    )


def _positions(positions: Sequence[MaskedPosition]) -> Markup | None:
    if not positions:
        return None
    titles = ["", "label", "in the input"]
    numbers = {0}
    if positions[0].teacher is not None:
        titles = ["", "label", "its p", "rank", "teacher", "first guesses", "other ids", "tail"]
        numbers = {0, 2, 3, 6, 7}
    head = element(
        "tr",
        *(
            element("th", title, scope="col", class_="number" if place in numbers else None)
            for place, title in enumerate(titles)
        ),
    )
    rows = map(_row, positions)
    return element("table", element("thead", head), element("tbody", *rows), class_="positions")


def _legend() -> Markup:
    parts = (
        (_mark("", MASKED, 1, None), " masked"),
        (_mark("x", KEPT, 2, None), " kept as it was"),
        (_mark("x", REPLACED, 3, None), " replaced by x"),
    )
    return element("p", *(element("span", *part) for part in parts), class_="legend note")


def _article(number: int, example: ShownExample) -> Markup:
    return element(
        "article",
        element("h2", f"Example {number}"),
        element("p", element("code", example.example_id), " · ", facts(example), class_="note"),
        *_sentence(example),
        _positions(example.positions),
    )


def examples_page(title: str, about: str, notes: str, examples: Sequence[ShownExample]) -> str:
    """Returns the page.

    Args:
        title: its heading.
        about: what the directory holds.
        notes: how to read what is shown.
        examples: in the order in which they are shown.
    """
    masked = any(example.positions for example in examples)
    found = outcome(examples)
    return page(
        title,
        about,
        element("p", element("b", found)) if found else None,
        _legend() if masked else None,
        element("p", notes, class_="note"),
        *(_article(number, example) for number, example in enumerate(examples, 1)),
        style=_STYLE,
    )
