"""Examples as an HTML page, in the order in which they are given."""

from collections.abc import Sequence

from tools.report import page
from tools.report.examples_text import (
    describe_example,
    named_segments,
    percent,
    rank,
    summarize,
)
from tools.report.shown_examples import MASKED, MaskedPosition, ShownExample

_OTHER_IDS = "Other ids: the teacher's probability of the stored ids that are not shown."


def _hint(position: MaskedPosition) -> str:
    treatment = "" if position.treatment == MASKED else f", {position.treatment}"
    text = f"{position.number}{treatment}: {position.label}"
    if position.teacher is not None:
        first = position.teacher.guesses[0]
        text += f"; the teacher predicts {first.text}, {percent(first.probability)}"
    return text


def examples_page(title: str, about: str, notes: str, examples: Sequence[ShownExample]) -> str:
    """Returns the page: on the directory, on the notation, and on each example."""
    has_teacher = any(position.teacher for example in examples for position in example.positions)
    return page.render(
        "examples.html.jinja",
        title=title,
        lead=about,
        notes=f"{notes} {_OTHER_IDS}" if has_teacher else notes,
        examples=examples,
        outcome=summarize(examples),
        masked=any(example.positions for example in examples),
        pairs=any(example.is_pair for example in examples),
        segments=named_segments,
        describe_example=describe_example,
        hint=_hint,
        percent=percent,
        rank=rank,
    )
