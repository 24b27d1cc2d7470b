"""Token classification: a tag for each word, for example to mark named entities."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data_specs.tasks import (
    OUTSIDE_TAG,
    SCHEMES,
    TOKEN_CLASSIFICATION,
    TaskSpec,
    describe_tags,
    is_tag,
)
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.families.base import Family
from pipeline.tokenizers.tokens import Tokenizer
from tools.finetuning.inputs import NO_TARGET, TARGETS, Feature, Layout
from tools.finetuning.kinds.base import Predictions, TaskKind, WriteSubmission
from tools.finetuning.kinds.labeled_rows import json_id
from tools.finetuning.task_files import (
    Sentence,
    SplitData,
    TaskExample,
    is_text,
    read_rows,
    read_sentences,
)

if TYPE_CHECKING:
    from pipeline.models.architectures.components import Tensor

# The type of an entity, and the indices of its first and its last word.
Entity = tuple[str, int, int]
_NO_WORD = -1
_OVERLAP = "entities are left out because they overlap an earlier one"


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a tagged sentence, as the script of CoNLL 2000 counts them.

    IOB1, BIO and BIOES have the same rules. I and E continue an entity of the same type,
    unless the previous tag ended it (E, S). An I or E without an entity to continue begins a
    new one.

    Example: `O I-PER I-PER I-LOC B-LOC` has PER 1-2, LOC 3-3 and LOC 4-4.
    """
    entities: list[Entity] = []
    previous_prefix, previous_type = OUTSIDE_TAG, ""
    for index, tag in enumerate(tags):
        prefix, _, entity_type = tag.partition("-")
        continues = (
            previous_prefix in ("B", "I") and prefix in ("I", "E") and entity_type == previous_type
        )
        if continues:
            entities[-1] = (entity_type, entities[-1][1], index)
        elif prefix != OUTSIDE_TAG:
            entities.append((entity_type, index, index))
        previous_prefix, previous_type = prefix, entity_type
    return entities


def tag_entities(entities: Sequence[Entity], num_words: int, scheme: str) -> list[str]:
    """Returns the tags of a sentence with these entities, which must not overlap."""
    tags = [OUTSIDE_TAG] * num_words
    for entity_type, first, last in entities:
        prefixes = ["B", *"I" * (last - first)]
        if "E" in SCHEMES[scheme]:
            prefixes[-1] = "E" if last > first else "S"
        tags[first : last + 1] = [f"{prefix}-{entity_type}" for prefix in prefixes]
    return tags


@dataclasses.dataclass
class _Counts:
    """Numbers of entities in the labels, in the predictions, and in both."""

    right: int = 0
    predicted: int = 0
    correct: int = 0

    def scores(self) -> dict[str, float]:
        """Returns precision, recall and F1; 0 instead of a division by zero."""
        return {
            "precision": self.correct / self.predicted if self.predicted else 0.0,
            "recall": self.correct / self.right if self.right else 0.0,
            "f1": 2 * self.correct / (self.predicted + self.right) if self.correct else 0.0,
        }


def entity_scores(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Returns the scores of tagged sentences, equal to those of seqeval in its default mode.

    An entity is correct if its type, its first and its last word are correct. `precision`,
    `recall` and `f1` count the entities of all types together. `f1_macro` is the mean F1 of
    the types.
    """
    counts: dict[str, _Counts] = collections.defaultdict(_Counts)
    for pair in zip(right, predicted, strict=True):
        expected, received = (set(find_entities(tags)) for tags in pair)
        for entity_type, *_ in expected:
            counts[entity_type].right += 1
        for entity_type, *_ in received:
            counts[entity_type].predicted += 1
        for entity_type, *_ in expected & received:
            counts[entity_type].correct += 1
    rows = list(map(dataclasses.astuple, counts.values())) or [(0, 0, 0)]
    all_types = _Counts(*map(sum, zip(*rows, strict=True)))
    f1_by_type = [value.scores()["f1"] for value in counts.values()]
    return {
        **all_types.scores(),
        "f1_macro": sum(f1_by_type) / len(f1_by_type) if f1_by_type else 0.0,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFeature(Feature):
    """The tokens of a sentence, or a window of them.

    Attributes:
        words: int32 [L], the index of a word in its sentence, at the first token of the word;
            -1 elsewhere. Exactly one feature has the index of a word and predicts its tag.
    """

    token_axis: ClassVar[int | None] = 0

    words: np.ndarray


def split_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of words joined by spaces, and the word that each token begins.

    A word without tokens, for example a control character, becomes one unknown token, so
    that each word has a prediction.

    Returns:
        the token ids, int32 [n], and the word indices, int32 [n]; -1 at the later tokens of
        a word.
    """
    begins = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    tokens = tokenizer.tokenize(" ".join(words))
    word_of = np.searchsorted(begins, tokens.starts, side="right") - 1
    visible = np.flatnonzero(tokens.ends > tokens.starts)
    known, first = np.unique(word_of[visible], return_index=True)
    numbers = np.full(len(tokens.ids), _NO_WORD, np.int32)
    numbers[visible[first]] = known
    missing = np.setdiff1d(np.arange(len(words)), known)
    insert_at = np.searchsorted(word_of, missing, side="right")
    special = tokenizer.special_ids
    # A byte-level tokenizer may have no unknown token.
    unknown = special.get("unk", special["mask"])
    ids = np.insert(tokens.ids, insert_at, unknown).astype(np.int32)
    return ids, np.insert(numbers, insert_at, missing).astype(np.int32)


def window_owners(num_tokens: int, room: int, stride: int) -> tuple[list[int], np.ndarray]:
    """Returns windows of a sentence that overlap by at least half, and the owner of each token.

    A token that several windows contain belongs to the window in which its shorter context,
    to the left or to the right, is longest.

    Example: 10 tokens and room for 4 have windows that start at 0, 2, 4 and 6.

    Args:
        num_tokens: number of tokens of the sentence.
        room: number of tokens of a window.
        stride: maximum number of tokens from the start of a window to the start of the next.

    Returns:
        the starts of the windows, and the window that each token belongs to, int
        [num_tokens].
    """
    step = max(1, min(stride, room // 2))
    begins = [*range(0, max(0, num_tokens - room), step), max(0, num_tokens - room)]
    best, owners = np.full(num_tokens, -1), np.zeros(num_tokens, np.int32)
    for number, begin in enumerate(begins):
        end = min(begin + room, num_tokens)
        positions = np.arange(begin, end)
        # Outside the sentence there is no context to miss.
        left = positions - begin if begin else np.full(end - begin, num_tokens)
        right = end - 1 - positions if end < num_tokens else np.full(end - begin, num_tokens)
        context_tokens = np.minimum(left, right)
        is_better = context_tokens > best[begin:end]
        best[begin:end][is_better] = context_tokens[is_better]
        owners[begin:end][is_better] = number
    return begins, owners


def _features(layout: Layout, index: int, words: Sequence[str]) -> Iterator[TokenFeature]:
    ids, numbers = split_words(layout.tokenizer, words)
    room = layout.room(1)
    begins, owners = window_owners(len(ids), room, layout.doc_stride)
    for window, begin in enumerate(begins):
        window_slice = slice(begin, begin + room)
        own_words = np.where(owners[window_slice] == window, numbers[window_slice], _NO_WORD)
        # A window within one long word predicts no tag and is dropped.
        if (own_words != _NO_WORD).any():
            joined, segments, first = layout.join([ids[window_slice]])
            words_at_tokens = np.full(len(joined), _NO_WORD, np.int32)
            words_at_tokens[first : first + len(own_words)] = own_words
            yield TokenFeature(index, joined, segments, words_at_tokens)


class TokenClassification(TaskKind):
    """A tag for each word, predicted at its first token; logits are [L, C].

    The predictions of an example are tag indices, int [words].
    """

    name = TOKEN_CLASSIFICATION
    architecture = "ForTokenClassification"
    pipeline_tag = "token-classification"
    feature = TokenFeature
    has_windows = True
    output_layer = "classifier"
    num_texts = 1
    output = "at each word's first token one of {labels}"
    finds_labels = True

    def dropout(self, family: Family) -> tuple[str, float] | None:
        """Returns the dropout of the family's head for tokens."""
        if family.has_sequence_head_over_tokens:
            return super().dropout(family)
        return family.token_dropout

    def find_labels(self, spec: TaskSpec, examples: Sequence[TaskExample]) -> tuple[str, ...]:
        """Returns `O`, and each prefix of the scheme with each type of the training examples."""
        tags = {tag for example in examples for tag in example.label or ()}
        types = sorted({tag.partition("-")[2] for tag in tags - {OUTSIDE_TAG}})
        typed = (f"{prefix}-{name}" for name in types for prefix in SCHEMES[spec.scheme])
        return (OUTSIDE_TAG, *typed)

    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields tagged sentences from columns, or from JSON lines of a text and its entities."""
        read = _read_columns if data.spec.reader == "conll" else _read_entities
        examples = (example for path in paths for example in read(data, path))
        for number, example in enumerate(examples):
            if example is not None:
                yield dataclasses.replace(example, key=example.key or str(number))

    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Returns `[CLS] sentence [SEP]` for each example, or for each window of a long one.

        Exactly one window predicts the tag of a word, and each window predicts at least one.
        """
        return [
            feature
            for index, example in enumerate(examples)
            for feature in _features(layout, index, example.texts)
        ]

    def targets(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[TokenFeature],
        labels: Sequence[str],
    ) -> list[np.ndarray]:
        """Returns the tag indices of each feature, int32 [L]; -1 at tokens without a word."""
        indices = {tag: index for index, tag in enumerate(labels)}
        arrays = []
        for feature in features:
            tags = examples[feature.example].label
            targets = [
                NO_TARGET if word == _NO_WORD else indices[tags[word]] for word in feature.words
            ]
            arrays.append(np.array(targets, np.int32))
        return arrays

    def loss_weights(self, weights: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns the weights [B, L]; 0 at tokens without a word."""
        from keras import ops

        has_target = ops.cast(batch[TARGETS] != NO_TARGET, "float32")
        return ops.expand_dims(weights, 1) * has_target

    def predict(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[TokenFeature],
        logits: Sequence[np.ndarray],
        *,
        max_answer_length: int,
    ) -> list[np.ndarray]:
        """Returns each word's most probable tag."""
        tags = [np.full(len(example.texts), -1, np.int32) for example in examples]
        for feature, value in zip(features, logits, strict=True):
            decides = feature.words != _NO_WORD
            tags[feature.example][feature.words[decides]] = value.argmax(axis=-1)[decides]
        return tags

    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns the task's metrics of the predicted entities."""
        tags = _named_tags(spec, examples, predictions)
        scores = entity_scores([example.label for example in examples], tags)
        return {name: scores[name] for name in spec.metrics}

    @property
    def submissions(self) -> Mapping[str, WriteSubmission]:
        """Lines of a word and its tag, or CLUENER's JSON lines of entities."""
        return {"conll": _write_columns, "cluener": _write_entities}


def _named_tags(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> list[list[str]]:
    counts = [len(example.texts) for example in examples]
    received = [len(indices) for indices in predictions]
    if received != counts:
        raise ValueError(f"expected a tag of each word ({counts[:5]}…), received {received[:5]}…")
    return [[spec.labels[index] for index in indices] for indices in predictions]


def _write_columns(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> bytes:
    lines = []
    named = _named_tags(spec, examples, predictions)
    for example, tags in zip(examples, named, strict=True):
        lines += [f"{word}\t{tag}\n" for word, tag in zip(example.texts, tags, strict=True)]
        lines.append("\n")
    return "".join(lines).encode("utf-8")


def _write_entities(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> bytes:
    lines = []
    named = _named_tags(spec, examples, predictions)
    for example, tags in zip(examples, named, strict=True):
        label: dict[str, dict[str, list[list[int]]]] = {}
        for entity_type, first, last in find_entities(tags):
            text = "".join(example.texts[first : last + 1])
            label.setdefault(entity_type, {}).setdefault(text, []).append([first, last])
        line = {"id": json_id(example.key), "label": label}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8")


def _read_columns(data: SplitData, path: Location) -> Iterator[TaskExample | None]:
    """Yields the sentences of a file of columns; None for a bad sentence."""
    spec = data.spec
    may_lack = not data.labeled and spec.columns[-1] == spec.label_field
    sentences = read_sentences(path, spec.columns, data.bad_row, may_lack_last=may_lack)
    for sentence in sentences:
        example = None
        if sentence is not None:
            try:
                example = _columns_example(spec, sentence)
            except InputError as error:
                data.bad_row(error)
        yield example


def _columns_example(spec: TaskSpec, sentence: Sentence) -> TaskExample:
    words, tags = [], []
    (word_column,) = spec.text_fields
    for where, cells in sentence:
        # A test file may lack the last column.
        fields = dict(zip(spec.columns, cells, strict=False))
        words.append(_find_word(spec, fields[word_column], f"{where}: {word_column}"))
        if spec.label_field in fields:
            place = f"{where}: {spec.label_field}"
            tags.append(_expect_tag(spec, fields[spec.label_field].strip(), place))
    if len(tags) not in (0, len(words)):
        expected = "a sentence with tags in all lines or in none"
        received = f"{len(tags)} tags in {len(sentence)} lines"
        raise InputError(sentence[0][0], expected, received)
    return TaskExample("", tuple(words), tuple(tags) or None)


def _find_word(spec: TaskSpec, cell: str, where: str) -> str:
    """Returns the word of a cell, which may contain other text."""
    if not spec.word_pattern:
        return cell
    match = re.fullmatch(spec.word_pattern, cell)
    if match is None:
        expected = f"a cell that matches `word_pattern` ({spec.word_pattern})"
        raise InputError(where, expected, format_value(cell))
    return match[1]


def _expect_tag(spec: TaskSpec, tag: str, where: str) -> str:
    if not is_tag(tag, spec.scheme):
        expected = f"a tag of the scheme {spec.scheme} ({describe_tags(spec.scheme)})"
        raise InputError(where, expected, format_value(tag))
    if spec.labels and tag not in spec.labels:
        raise InputError(where, f"one of {', '.join(spec.labels)}", format_value(tag))
    return tag


def _read_entities(data: SplitData, path: Location) -> Iterator[TaskExample | None]:
    """Yields the texts of JSON lines, with each character as a word; None for a bad line."""
    spec = data.spec
    needed = (*spec.text_fields, *([spec.label_field] if data.labeled else []))
    for row in read_rows(spec, path, needed, data.bad_row):
        example = None
        if row is not None:
            try:
                example = _entities_example(data, *row)
            except InputError as error:
                data.bad_row(error)
        yield example


def _entities_example(data: SplitData, where: str, fields: Mapping[str, Any]) -> TaskExample:
    spec = data.spec
    (text_field,) = spec.text_fields
    text, key = fields[text_field], str(fields.get(spec.id_field, ""))
    for name, value in ((text_field, text), (spec.id_field, key)):
        if not is_text(value) or not text:
            raise InputError(f"{where}: {name}", "text", format_value(value))
    if spec.label_field not in fields:
        return TaskExample(key, tuple(text))
    place = f"{where}: {spec.label_field}"
    spans_by_type = json_text.convert(
        fields[spec.label_field], dict[str, dict[str, list[tuple[int, int]]]], place
    )
    entities = sorted(
        (
            _locate(text, words, *ends, entity_type, place)
            for entity_type, spans_of_words in spans_by_type.items()
            for words, spans in spans_of_words.items()
            for ends in spans
        ),
        key=lambda entity: entity[1:],
    )
    accepted: list[Entity] = []
    for entity in entities:
        if accepted and entity[1] <= accepted[-1][2]:
            data.remarks[_OVERLAP] += 1
        else:
            accepted.append(entity)
    tags = tag_entities(accepted, len(text), spec.scheme)
    return TaskExample(key, tuple(text), tuple(_expect_tag(spec, tag, place) for tag in tags))


def _locate(text: str, words: str, first: int, last: int, entity_type: str, place: str) -> Entity:
    """Returns an entity after checking that its words are at the stated characters."""
    if not 0 <= first <= last < len(text) or text[first : last + 1] != words:
        raise InputError(
            place, f"{format_value(words)} at the characters {first} to {last}", "none"
        )
    return entity_type, first, last


KIND = TokenClassification()
