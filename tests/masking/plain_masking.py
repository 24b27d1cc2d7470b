"""Reference implementation for one window at a time; `masks` and `windows` handle many at once."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.base.seeding import KeyedStreams
from pipeline.masking.masks import MaskingPolicy
from pipeline.masking.windows import Windows

_DRAWN = 2.0**32


@dataclasses.dataclass(frozen=True)
class Window:
    """A window with its special tokens.

    Attributes:
        input_ids: the input, with `[CLS]` and `[SEP]`.
        segment_lengths: one or two, with `[CLS]` and `[SEP]`.
        positions: the position in the input of each token of the document.
        word_starts: which of these tokens begin a word.
    """

    input_ids: list[int]
    segment_lengths: list[int]
    positions: list[int]
    word_starts: list[bool]

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the document."""
        return [self.input_ids[position] for position in self.positions]


@dataclasses.dataclass(frozen=True)
class MaskedWindow:
    """A window after masking: its input, its masked positions, and the true tokens there."""

    input_ids: list[int]
    positions: list[int]
    labels: list[int]


def window_spans(num_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields the first token of each window of a document, and the token after its last."""
    begin = 0
    while begin < num_tokens:
        end = min(begin + length, num_tokens)
        yield begin, end
        if end == num_tokens:
            return
        begin += min(stride, length)


def build_window(
    ids: Sequence[int], word_starts: Sequence[bool], split: int | None, cls_id: int, sep_id: int
) -> Window:
    """Returns a window whose second segment begins with token `split`; None for one segment."""
    second = [] if split is None else list(ids[split:])
    first = list(ids[: len(ids) - len(second)])
    inputs, lengths = [cls_id, *first, sep_id], [len(first) + 2]
    positions = [1 + index + (index >= len(first)) for index in range(len(ids))]
    if second:
        inputs += [*second, sep_id]
        lengths.append(len(second) + 1)
    return Window(inputs, lengths, positions, list(word_starts))


def words(window: Window, policy: MaskingPolicy, is_special: Sequence[bool]) -> list[range]:
    """Returns the tokens of each word that may be masked."""
    starts = [0, *(index for index, begins in enumerate(window.word_starts) if begins and index)]
    every = map(range, starts, [*starts[1:], len(window.positions)])
    room, tokens = num_to_predict(window, policy), window.token_ids
    return [
        word
        for word in every
        if len(word) <= room and not any(is_special[tokens[index]] for index in word)
    ]


def num_to_predict(window: Window, policy: MaskingPolicy) -> int:
    """Returns the largest number of masked tokens of a window."""
    wanted = max(1, round(len(window.input_ids) * policy.masked_lm_prob))
    return min(policy.max_predictions_per_seq, wanted)


def mask_window(
    window: Window,
    policy: MaskingPolicy,
    is_special: Sequence[bool],
    streams: KeyedStreams,
    token_weights: Sequence[float] | None = None,
) -> MaskedWindow:
    """Masks a window once; `streams` have one row."""
    candidates, tokens = words(window, policy, is_special), window.token_ids
    order = streams.bits(len(candidates), stream=0).tolist()
    if token_weights is not None:
        weights = [np.mean([token_weights[tokens[index]] for index in word]) for word in candidates]
        order = [
            -math.log((number + 0.5) / _DRAWN) / weight
            for number, weight in zip(order, weights, strict=True)
        ]
    room, chosen = num_to_predict(window, policy), []
    for number in sorted(range(len(candidates)), key=order.__getitem__):
        if len(candidates[number]) <= room:
            chosen += candidates[number]
            room -= len(candidates[number])
    positions = [window.positions[index] for index in sorted(chosen)]
    labels = [window.input_ids[position] for position in positions]
    cases, picks = (streams.bits(len(labels), stream).tolist() for stream in (1, 2))
    input_ids = list(window.input_ids)
    for position, case, pick in zip(positions, cases, picks, strict=True):
        if case < 0.8 * _DRAWN:
            input_ids[position] = policy.mask_id
        elif case < 0.9 * _DRAWN:
            replacements = policy.replacement_ids.tolist()
            input_ids[position] = replacements[pick * len(replacements) >> 32]
    return MaskedWindow(input_ids, positions, labels)


def join(windows: Sequence[Window]) -> Windows:
    """Returns windows as `pipeline.masking.windows` holds them."""
    lengths = [len(window.input_ids) for window in windows]
    firsts = np.cumsum(lengths) - lengths
    return Windows(
        np.concatenate([window.input_ids for window in windows]),
        np.array(lengths),
        np.array([[*window.segment_lengths, 0][:2] for window in windows]),
        np.concatenate(
            [first + window.positions for first, window in zip(firsts, windows, strict=True)]
        ),
        np.array([len(window.positions) for window in windows]),
        np.concatenate([window.word_starts for window in windows]),
    )
