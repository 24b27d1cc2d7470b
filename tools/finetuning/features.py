"""Features: the token ids of an example, or of each window of a question's context."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.base.errors import InputError, Setting
from pipeline.tokenizers.tokens import Tokenizer, Tokens
from tools.finetuning.task_data import TaskExample

OUTSIDE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """What a model reads at once, unpadded; L is its own length.

    Attributes:
        example: the index of its example.
        input_ids: int32 [L].
        segment_ids: int32 [L]; all 0 where the model has one segment.
        context_start: the first token of the context; 0 but for questions.
        context_end: the token after the context's last; 0 but for questions.
        starts: int32 [L], the character of the context at which each token
            begins; -1 outside it.
        ends: int32 [L], the character after its last; -1 outside the context.
        answer: the first and the last token of the first right answer; (0, 0),
            which is [CLS], where that does not lie in this window whole; None
            where no answer is known, and but for questions.
        is_last: whether it is the last feature of its example.
    """

    example: int
    input_ids: np.ndarray
    segment_ids: np.ndarray
    context_start: int
    context_end: int
    starts: np.ndarray
    ends: np.ndarray
    answer: tuple[int, int] | None
    is_last: bool


def build_features(
    examples: Sequence[TaskExample],
    tokenizer: Tokenizer,
    *,
    kind: str,
    max_seq_length: int,
    doc_stride: int = 128,
    max_query_length: int = 64,
    type_vocab_size: int = 2,
    double_separator: bool = False,
) -> list[Feature]:
    """Makes the features of examples, in their order.

    One text becomes `[CLS] a [SEP]`, two become `[CLS] a [SEP] b [SEP]`, too long
    ones cut at their ends, the longer one first (Devlin et al. 2018). A question
    becomes one feature for each window of its context, `[CLS] question [SEP]
    window [SEP]`; a window begins `doc_stride` tokens after the one before, as in
    BERT's run_squad.py, and the last one reaches the end.

    Example: a context of 10 tokens and room for 4, with `doc_stride` 3, has the
        windows 0-3, 3-6 and 6-9.

    Args:
        examples: read by `task_data.read_split`.
        tokenizer: the model's.
        kind: the task's.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens from the beginning of a window to that of the next; no
            more than the window has.
        max_query_length: tokens of a question at most; the rest is cut off.
        type_vocab_size: the model's segments; below 2 all tokens are of segment 0.
        double_separator: whether two separators stand between two texts, as in
            RoBERTa's family.

    Raises:
        InputError: `max_seq_length` leaves no room for text.
    """
    layout = _Layout(tokenizer, max_seq_length, type_vocab_size > 1, double_separator)
    if kind != "span":
        return [_labelled(layout, index, example) for index, example in enumerate(examples)]
    if doc_stride < 1:
        raise InputError(Setting("doc_stride"), "a number above 0", doc_stride)
    features = []
    # The questions on one paragraph share its text.
    contexts: dict[str, Tokens] = {}
    for index, example in enumerate(examples):
        question, context = example.texts
        if context not in contexts:
            contexts[context] = tokenizer.tokenize(context)
        query = tokenizer.tokenize(question).ids[:max_query_length]
        features += _windows(layout, index, example, query, contexts[context], doc_stride)
    return features


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where texts and special tokens stand."""

    tokenizer: Tokenizer
    max_seq_length: int
    two_segments: bool
    double_separator: bool

    def num_special(self, num_texts: int) -> int:
        """Returns how many special tokens there are."""
        return 1 + num_texts + (num_texts == 2 and self.double_separator)

    def room(self, num_texts: int, *, used: int = 0) -> int:
        """Returns how many tokens of text fit beside `used` others."""
        taken = self.num_special(num_texts) + used
        least = 1 if used else num_texts
        if self.max_seq_length < taken + least:
            raise InputError(
                Setting("max_seq_length"),
                f"at least {taken + least}, for {taken} tokens of separators and "
                f"questions and {least} of text",
                self.max_seq_length,
            )
        return self.max_seq_length - taken

    def join(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns input_ids, segment_ids, and the place of the last text's first token."""
        special = self.tokenizer.special_ids
        cls, sep = [special["cls"]], [special["sep"]]
        first = np.concatenate([cls, texts[0], sep]).astype(np.int32)
        if len(texts) == 1:
            return first, np.zeros(len(first), np.int32), 1
        between = sep if self.double_separator else []
        ids = np.concatenate([first, between, texts[1], sep]).astype(np.int32)
        begin = len(first) + len(between)
        segments = np.zeros(len(ids), np.int32)
        if self.two_segments:
            segments[begin:] = 1
        return ids, segments, begin


def truncated_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens two texts keep: the longer one loses its last, one by one.

    Of two equally long texts the second loses first (BERT's `_truncate_seq_pair`).

    Example: lengths 7 and 4 with room for 6 become 3 and 3, with room for 5 3 and 2.
    """
    excess = max(0, first + second - room)
    from_first = min(excess, max(0, first - second))
    from_second = min(excess, max(0, second - first))
    rest = excess - from_first - from_second
    return first - from_first - rest // 2, second - from_second - (rest + 1) // 2


def _labelled(layout: _Layout, index: int, example: TaskExample) -> Feature:
    texts = [layout.tokenizer.tokenize(text).ids for text in example.texts]
    room = layout.room(len(texts))
    if len(texts) == 2:
        lengths = truncated_lengths(len(texts[0]), len(texts[1]), room)
        texts = [ids[:length] for ids, length in zip(texts, lengths, strict=True)]
    else:
        texts = [texts[0][:room]]
    ids, segments, _ = layout.join(texts)
    outside = np.full(len(ids), OUTSIDE, np.int32)
    return Feature(index, ids, segments, 0, 0, outside, outside, None, True)


def _windows(
    layout: _Layout,
    index: int,
    example: TaskExample,
    query: np.ndarray,
    context: Tokens,
    doc_stride: int,
) -> list[Feature]:
    """Returns the features of a question."""
    room = layout.room(2, used=len(query))
    total = len(context.ids)
    span = answer_tokens(example, context)
    features = []
    begin, stop = 0, False
    while not stop:
        end = min(begin + room, total)
        stop = end == total
        ids, segments, first = layout.join([query, context.ids[begin:end]])
        last = first + end - begin
        starts, ends = (np.full(len(ids), OUTSIDE, np.int32) for _ in range(2))
        starts[first:last] = context.starts[begin:end]
        ends[first:last] = context.ends[begin:end]
        answer = None
        if span is not None:
            inside = begin <= span[0] <= span[1] < end
            answer = (first + span[0] - begin, first + span[1] - begin) if inside else (0, 0)
        features.append(Feature(index, ids, segments, first, last, starts, ends, answer, stop))
        begin += min(doc_stride, room)
    return features


def answer_tokens(example: TaskExample, context: Tokens) -> tuple[int, int] | None:
    """Returns the first and the last token of the context that the first answer touches.

    An answer that begins or ends within a token takes it whole. One that no token
    touches, for a tokenizer may drop characters, gets (0, -1), which lies in no
    window. Without an answer there is None.

    Example: tokens at characters 0-2, 3-5 and 5-9 and an answer at 4-7 give (1, 2).
    """
    if not example.answers:
        return None
    answer = example.answers[0]
    first = int(np.searchsorted(context.ends, answer.start, side="right"))
    last = int(np.searchsorted(context.starts, answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else (0, -1)
