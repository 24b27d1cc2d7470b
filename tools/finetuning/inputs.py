"""The inputs of a model: features of examples, their identity, and padded batches."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS, TEACHER_LOGITS
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import length_buckets
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import Tokenizer, Tokens
from pipeline.tokenizers.vocabulary import VocabInfo
from tools.finetuning.head_layout import Head, read_head
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
    """

    example: int
    input_ids: np.ndarray
    segment_ids: np.ndarray
    context_start: int
    context_end: int
    starts: np.ndarray
    ends: np.ndarray
    answer: tuple[int, int] | None


def build_features(
    examples: Sequence[TaskExample],
    tokenizer: Tokenizer,
    *,
    kind: str,
    max_seq_length: int,
    doc_stride: int = 128,
    max_query_length: int = 64,
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
        examples: of a split.
        tokenizer: the model's.
        kind: the task's.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens from the beginning of a window to that of the next; no
            more than the window has.
        max_query_length: tokens of a question at most; the rest is cut off.
        double_separator: whether two separators stand between two texts, as in
            RoBERTa's family.

    Raises:
        InputError: `max_seq_length` leaves no room for text.
    """
    layout = _Layout(tokenizer, max_seq_length, double_separator)
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
    double_separator: bool

    def room(self, num_texts: int, *, used: int = 0) -> int:
        """Returns how many tokens of text fit beside `used` others."""
        taken = 1 + num_texts + (num_texts == 2 and self.double_separator) + used
        least = 1 if used else num_texts
        if self.max_seq_length < taken + least:
            needed = f"{taken} tokens of separators and questions and {least} of text"
            expected = f"at least {taken + least}, for {needed}"
            raise InputError(Setting("max_seq_length"), expected, self.max_seq_length)
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
        return ids, (np.arange(len(ids)) >= begin).astype(np.int32), begin


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
    lengths = [layout.room(len(texts))]
    if len(texts) == 2:
        lengths = truncated_lengths(len(texts[0]), len(texts[1]), *lengths)
    texts = [ids[:length] for ids, length in zip(texts, lengths, strict=True)]
    ids, segments, _ = layout.join(texts)
    outside = np.full(len(ids), OUTSIDE, np.int32)
    return Feature(index, ids, segments, 0, 0, outside, outside, None)


def _windows(
    layout: _Layout,
    index: int,
    example: TaskExample,
    query: np.ndarray,
    context: Tokens,
    doc_stride: int,
) -> list[Feature]:
    room = layout.room(2, used=len(query))
    total = len(context.ids)
    span = answer_tokens(example, context)
    features, begin, stop = [], 0, False
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
        features.append(Feature(index, ids, segments, first, last, starts, ends, answer))
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


def input_digest(feature: Feature) -> bytes:
    """Returns 16 bytes that depend on an input's tokens and segments."""
    arrays = (feature.input_ids, feature.segment_ids)
    return seeding.digest(*(array.astype("<i4").tobytes() for array in arrays))


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """The inputs of a split, in order.

    Attributes:
        task: its name.
        head: what a model has to say of them.
        vocab: of the tokenizer.
        special_ids: of the tokenizer.
        max_seq_length: tokens of the longest that may be.
        doc_stride: tokens between the windows of a context; None where there are none.
        features: the inputs.
    """

    task: str
    head: Head
    vocab: VocabInfo
    special_ids: Mapping[str, int]
    max_seq_length: int
    doc_stride: int | None
    features: Sequence[Feature]

    def sha256(self) -> str:
        """Returns a digest of all tokens and segments, in their order."""
        digest = hashlib.sha256()
        for feature in self.features:
            digest.update(input_digest(feature))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what logits of them are logits of, as JSON values."""
        return {
            "task": self.task,
            "head": self.head.kind,
            "labels": list(self.head.labels),
            "vocab": msgspec.to_builtins(self.vocab),
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "num_windows": len(self.features),
            # The last of all: what the others decide differs first.
            "windows": self.sha256(),
        }


def expect_reader(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a model knows the tokens of inputs, and has positions for the longest.

    Raises:
        InputError: it does not; prints both.
    """
    config, directory = source.config, source.directory
    if inputs.max_seq_length > config.max_input_length:
        expected = f"a model of at least {inputs.max_seq_length} positions (`max_seq_length`)"
        raise InputError(directory, expected, config.max_input_length)
    if inputs.vocab.size > config.vocab_size:
        expected = f"a model of at least {inputs.vocab.size} tokens, as the tokenizer has"
        raise InputError(directory, expected, config.vocab_size)
    paths = loading.tokenizer_files(directory)
    found = [loading.read_vocab_info(path) for path in paths]
    if found and inputs.vocab not in found:
        raise InputError(
            directory,
            f"the tokens of `model` (SHA-256 {inputs.vocab.sha256}, {inputs.vocab.size} tokens)",
            f"{paths[0]} (SHA-256 {found[0].sha256}, {found[0].size} tokens)",
        )


def expect_teacher(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a teacher was fine-tuned on the task and can read the inputs.

    Raises:
        InputError: its head is another one or none, or it knows other tokens or
            fewer positions.
    """
    head = read_head(source)
    if head is None or not inputs.head.fits(head):
        expected, received = f"{inputs.head} for `task`={inputs.task}", head or "none"
        setting = Setting("finetune_teacher")
        raise InputError(setting, expected, f"{source.directory} with {received}")
    expect_reader(source, inputs)


# Names that a batch has beside BERT's own: what is to be said, and whether a row counts.
TARGETS = "targets"
WEIGHTS = "weights"

# Batches of an epoch that are sorted by length together.
_GROUP_BATCHES = 16

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Padding:
    """The shapes that batches have.

    Attributes:
        batch_size: B; rows beyond the inputs are empty.
        max_seq_length: tokens of the longest input.
        type_vocab_size: segments that the model knows; later ones become its last.
    """

    batch_size: int
    max_seq_length: int
    type_vocab_size: int = 2

    def batch(self, features: Sequence[Feature]) -> Arrays:
        """Pads at most B inputs to int32 `input_ids`, `input_mask`, `segment_ids` [B, L]."""
        longest = max(len(feature.input_ids) for feature in features)
        length = length_buckets.padded_length(longest, self.max_seq_length)
        ids, mask, segments = np.zeros((3, self.batch_size, length), np.int32)
        for row, feature in enumerate(features):
            count = len(feature.input_ids)
            ids[row, :count] = feature.input_ids
            mask[row, :count] = 1
            segments[row, :count] = feature.segment_ids
        segments = np.minimum(segments, max(0, self.type_vocab_size - 1))
        return {INPUT_IDS: ids, INPUT_MASK: mask, SEGMENT_IDS: segments}


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """The batches of training, epoch after epoch.

    An epoch is a permutation of all inputs. Of each group of batches in it, the
    inputs are sorted by length and cut; then the epoch's batches are shuffled, so
    that no step tells how long its inputs are. Only an epoch's last batch has rows
    that do not count.

    Attributes:
        features: the inputs, N.
        targets: [N, …], what is to be said of each.
        padding: the shapes.
        seed: decides the order.
        teacher_logits: of each input, float32 [C], or [2, L] without padding; None
            without a teacher.
    """

    features: Sequence[Feature]
    targets: np.ndarray
    padding: Padding
    seed: int
    teacher_logits: Sequence[np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.features) // self.padding.batch_size)

    def take(self, num_steps: int) -> Iterator[Arrays]:
        """Yields the first so many batches.

        Each is what `Padding.batch` returns with `targets` [B, …]; `weights` float32 [B], 1 at
        real rows; and `teacher_logits` float32 [B, C] or [B, 2, L] where there are any.
        """
        epoch = 0
        while num_steps > 0:
            for indices in self.epoch(epoch)[:num_steps]:
                yield self._batch(indices)
            num_steps -= self.steps_per_epoch
            epoch += 1

    def epoch(self, number: int) -> list[np.ndarray]:
        """Returns the indices of an epoch's batches, each of at most `batch_size`."""
        random = seeding.stream(self.seed, "order of fine-tuning", number)
        order = random.permutation(len(self.features))
        lengths = np.array([len(feature.input_ids) for feature in self.features])
        size = self.padding.batch_size
        batches = []
        for begin in range(0, len(order), _GROUP_BATCHES * size):
            group = order[begin : begin + _GROUP_BATCHES * size]
            group = group[np.argsort(lengths[group], kind="stable")]
            batches += [group[at : at + size] for at in range(0, len(group), size)]
        return [batches[index] for index in random.permutation(len(batches))]

    def _batch(self, indices: np.ndarray) -> Arrays:
        batch = self.padding.batch([self.features[index] for index in indices])
        size, length = batch[INPUT_IDS].shape
        batch[TARGETS] = np.zeros((size, *self.targets.shape[1:]), self.targets.dtype)
        batch[TARGETS][: len(indices)] = self.targets[indices]
        batch[WEIGHTS] = (np.arange(size) < len(indices)).astype(np.float32)
        if self.teacher_logits is not None:
            logits = [self.teacher_logits[index] for index in indices]
            batch[TEACHER_LOGITS] = pad_logits(logits, size, length)
        return batch


def pad_logits(logits: Sequence[np.ndarray], batch_size: int, length: int) -> np.ndarray:
    """Pads the logits of inputs, float32 [C] or [2, tokens], with zeros to [B, C] or [B, 2, L]."""
    first = logits[0]
    shape = first.shape if first.ndim == 1 else (len(first), length)
    padded = np.zeros((batch_size, *shape), np.float32)
    for row, value in enumerate(logits):
        padded[row, ..., : value.shape[-1]] = value
    return padded


def prediction_batches(
    features: Sequence[Feature], padding: Padding
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields batches of similar length that together hold every input once.

    Each comes with the indices of its inputs, as `Padding.batch` makes it.
    """
    order = np.argsort([len(feature.input_ids) for feature in features], kind="stable")
    for begin in range(0, len(order), padding.batch_size):
        indices = order[begin : begin + padding.batch_size]
        yield indices, padding.batch([features[index] for index in indices])
