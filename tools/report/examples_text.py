"""Examples as text for a terminal, in at most 100 columns."""

import string
from collections.abc import Iterator, Sequence

from tools.report.shown_examples import KEPT, MASKED, REPLACED, MaskedPosition, Piece, ShownExample
from tools.report.text_width import clip, display_width, pad, wrap

COLUMNS = 100
_INDENT = "  "
_LABEL_WIDTH = 16
# The sign between the number of a masked position and its token.
_SIGNS = {MASKED: ":", KEPT: "=", REPLACED: "~"}
LEGEND = "[n:MASK] masked, [n=x] kept, [n~x] replaced by x"
PAIRS = "A and B: the two segments of an example"


def percent(share: float) -> str:
    """Formats a share, for example as 41.2%; shares below 0.05% become <0.1%."""
    return "<0.1%" if 0.0 < share < 0.0005 else f"{share:.1%}"


def rank(position: MaskedPosition) -> str:
    """Returns the label's rank among the cached ids; `> n` if it is not among the n ids."""
    word = position.teacher
    return f"> {word.num_ids}" if word.label_rank is None else f"{word.label_rank}"


def summarize(examples: Sequence[ShownExample]) -> str | None:
    """Returns a sentence on the teacher's accuracy at all shown positions; None without them."""
    words = [position.teacher for example in examples for position in example.positions]
    words = [word for word in words if word is not None]
    if not words:
        return None
    right = sum(word.right for word in words)
    label = sum(word.label_probability for word in words) / len(words)
    tail = sum(word.tail for word in words) / len(words)
    share = f"{right} of {len(words)} masked positions ({right / len(words):.0%})"
    means = f"{percent(label)} for the label and {percent(tail)} for the tail"
    return f"The teacher's prediction is correct at {share}. Mean probability: {means}."


def describe_example(example: ShownExample) -> str:
    """Returns an example's shard, its length, and the treatments of its masked positions."""
    text = f"{example.file}, record {example.index}: {example.num_tokens} tokens"
    if not example.positions:
        return text
    counts = ((MASKED, "[MASK]"), (KEPT, "kept"), (REPLACED, "replaced"))
    treatments = ", ".join(f"{example.count(name)} {word}" for name, word in counts)
    return f"{text}, {len(example.positions)} masked ({treatments})"


def named_segments(example: ShownExample) -> list[tuple[str, Sequence[Piece]]]:
    """Returns the segments with their names, A and B; the name of a single one is empty."""
    names = string.ascii_uppercase if example.is_pair else ("",)
    return list(zip(names, example.segments, strict=False))


def _piece(piece: Piece, positions: Sequence[MaskedPosition], borders: bool) -> str:
    text = piece.text
    if piece.number is not None:
        treatment = positions[piece.number - 1].treatment
        token = "MASK" if treatment == MASKED else piece.text
        text = f"[{piece.number}{_SIGNS[treatment]}{token}]"
    border = "|" if borders and piece.new_word else ""
    return " " * piece.space + border + text


def _sentences(example: ShownExample) -> Iterator[str]:
    """Yields the lines of the segments; unmasked windows have a | before each word.

    The two segments of a pair begin with A and B.
    """
    borders = not example.positions
    for name, segment in named_segments(example):
        begin = f"{_INDENT}{name}: " if name else _INDENT
        texts = [_piece(piece, example.positions, borders) for piece in segment]
        # A line may end after any token that ends a word.
        joined: list[str] = []
        for text, piece in zip(texts, segment, strict=True):
            latin = text.isascii() and not piece.space and not piece.new_word
            if joined and latin and joined[-1].isascii() and display_width(joined[-1]) < 40:
                joined[-1] += text
            else:
                joined.append(text)
        for line in wrap(joined, COLUMNS - len(begin)):
            yield begin + line
            begin = " " * len(begin)


def _teacher_table(positions: Sequence[MaskedPosition]) -> Iterator[str]:
    labels = [clip(position.label, _LABEL_WIDTH) for position in positions]
    width = max(len("label"), *map(display_width, labels))
    ranks = max(len("rank"), *(len(rank(position)) for position in positions))
    head = f"{_INDENT}  n  {pad('label', width)}  p(label)  {'rank':>{ranks}}    tail  "
    yield f"{head}   top predictions (* the label)"
    for position, label in zip(positions, labels, strict=True):
        word = position.teacher
        begin = (
            f"{_INDENT}{position.number:3}  {pad(label, width)}  "
            f"{percent(word.label_probability):>8}  {rank(position):>{ranks}}  "
            f"{percent(word.tail):>6}  {'✓' if word.right else '✗'}  "
        )
        guesses = [
            f"{'*' if guess.right else ''}{guess.text} {percent(guess.probability)}   "
            for guess in word.guesses
        ]
        for line in wrap(guesses, COLUMNS - display_width(begin)):
            yield begin + line
            begin = " " * display_width(begin)


def _label_table(positions: Sequence[MaskedPosition]) -> Iterator[str]:
    labels = [f"{position.number} {position.label}   " for position in positions]
    begin = f"{_INDENT}labels:  "
    for line in wrap(labels, COLUMNS - len(begin)):
        yield begin + line
        begin = " " * len(begin)


def example_lines(example: ShownExample) -> Iterator[str]:
    """Yields the lines of an example: its shard, its text, and its masked positions."""
    yield f"example {example.example_id}"
    yield from (_INDENT + line for line in wrap(_words(describe_example(example)), COLUMNS - 2))
    yield ""
    yield from _sentences(example)
    if example.positions:
        yield ""
        has_teacher = example.positions[0].teacher is not None
        yield from (_teacher_table if has_teacher else _label_table)(example.positions)


def _words(text: str) -> list[str]:
    return [f"{word} " for word in text.split()]


def report_lines(about: str, notes: Sequence[str], examples: Sequence[ShownExample]) -> list[str]:
    """Returns all lines: on the directory, on the notation, and on each example."""
    texts = [about, *notes, *([LEGEND] if any(example.positions for example in examples) else [])]
    if any(example.is_pair for example in examples):
        texts.append(PAIRS)
    lines = [line for text in texts for line in wrap(_words(text), COLUMNS)]
    for example in examples:
        lines += ["", *example_lines(example)]
    summary = summarize(examples)
    return lines if summary is None else [*lines, "", *wrap(_words(summary), COLUMNS)]
