"""Token classification: a tag of each word, such as the entities of a sentence."""

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
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.models.families.base import Family
from pipeline.tokenizers.tokens import Tokenizer
from tools.finetuning.inputs import NO_TARGET, TARGETS, Feature, Layout
from tools.finetuning.kinds.base import Predictions, TaskKind, WriteSubmission
from tools.finetuning.kinds.labelled_rows import json_id
from tools.finetuning.task_files import (
    Sentence,
    SplitData,
    TaskExample,
    is_text,
    read_rows,
    read_sentences,
)

if TYPE_CHECKING:
    from pipeline.models.architectures.parts import Tensor

# A type of entities, its first and its last word.
Entity = tuple[str, int, int]
_NO_WORD = -1
_OVERLAP = "entities are left out, as they overlap an earlier one"


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a tagged sentence, as the script of CoNLL 2000 counts them.

    It reads IOB1, BIO and BIOES alike: I and E continue an entity of their own type, unless
    the word before ended one (E, S). An I or E that nothing precedes begins an entity.

    Example: `O I-PER I-PER I-LOC B-LOC` has PER 1-2, LOC 3-3 and LOC 4-4.
    """
    entities: list[Entity] = []
    before, before_type = OUTSIDE_TAG, ""
    for place, tag in enumerate(tags):
        prefix, _, entity_type = tag.partition("-")
        continues = before in ("B", "I") and prefix in ("I", "E") and entity_type == before_type
        if continues:
            entities[-1] = (entity_type, entities[-1][1], place)
        elif prefix != OUTSIDE_TAG:
            entities.append((entity_type, place, place))
        before, before_type = prefix, entity_type
    return entities


def tag_entities(entities: Sequence[Entity], num_words: int, scheme: str) -> list[str]:
    """Returns the tags of a sentence's entities, of which no two overlap."""
    tags = [OUTSIDE_TAG] * num_words
    for entity_type, first, last in entities:
        prefixes = ["B", *"I" * (last - first)]
        if "E" in SCHEMES[scheme]:
            prefixes[-1] = "E" if last > first else "S"
        tags[first : last + 1] = [f"{prefix}-{entity_type}" for prefix in prefixes]
    return tags


@dataclasses.dataclass
class _Counts:
    """Entities: those that are right, those that were predicted, and those of both."""

    right: int = 0
    predicted: int = 0
    correct: int = 0

    def scores(self) -> dict[str, float]:
        """Returns precision, recall and F1; 0 where there is nothing to divide by."""
        return {
            "precision": self.correct / self.predicted if self.predicted else 0.0,
            "recall": self.correct / self.right if self.right else 0.0,
            "f1": 2 * self.correct / (self.predicted + self.right) if self.correct else 0.0,
        }


def entity_scores(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Returns the scores of tagged sentences, equal to those of seqeval in its default mode.

    An entity is correct if its type, its first and its last word are. `precision`, `recall`
    and `f1` count the entities of all types together; `f1_macro` is the mean of the types' F1.
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
    every = _Counts(*map(sum, zip(*rows, strict=True)))
    each = [value.scores()["f1"] for value in counts.values()]
    return {**every.scores(), "f1_macro": sum(each) / len(each) if each else 0.0}


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFeature(Feature):
    """The tokens of a sentence, or a window of them.

    Attributes:
        words: int32 [L], at the first token of a word the word's number in its sentence, in
            the only feature that decides it; -1 elsewhere.
    """

    token_axis: ClassVar[int | None] = 0

    words: np.ndarray


def split_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of words, which spaces separate, and which word each begins.

    A word of which the tokenizer makes nothing, such as a control character, becomes one
    unknown token, so that each word has a prediction.

    Returns:
        int32 [n] token ids, and int32 [n] the numbers of words; -1 at their further tokens.
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
    # A tokenizer of bytes may have no unknown token.
    unknown = special.get("unk", special["mask"])
    ids = np.insert(tokens.ids, insert_at, unknown).astype(np.int32)
    return ids, np.insert(numbers, insert_at, missing).astype(np.int32)


def window_owners(num_tokens: int, room: int, stride: int) -> tuple[list[int], np.ndarray]:
    """Cuts a sentence into windows that overlap by half or more.

    Example: 10 tokens and room for 4 have windows from 0, 2, 4 and 6; of the tokens that two
        windows share, each belongs to the one that shows more on its poorer side.

    Args:
        num_tokens: of the sentence.
        room: tokens of a window.
        stride: tokens from a window's begin to that of the next, at most.

    Returns:
        the begins of the windows, and int [num_tokens] the window that each token belongs to.
    """
    step = max(1, min(stride, room // 2))
    begins = [*range(0, max(0, num_tokens - room), step), max(0, num_tokens - room)]
    best, owners = np.full(num_tokens, -1), np.zeros(num_tokens, np.int32)
    for number, begin in enumerate(begins):
        end = min(begin + room, num_tokens)
        positions = np.arange(begin, end)
        # At the ends of the sentence nothing is missing.
        left = positions - begin if begin else np.full(end - begin, num_tokens)
        right = end - 1 - positions if end < num_tokens else np.full(end - begin, num_tokens)
        shown_tokens = np.minimum(left, right)
        is_better = shown_tokens > best[begin:end]
        best[begin:end][is_better] = shown_tokens[is_better]
        owners[begin:end][is_better] = number
    return begins, owners


def _features(layout: Layout, index: int, words: Sequence[str]) -> Iterator[TokenFeature]:
    ids, numbers = split_words(layout.tokenizer, words)
    room = layout.room(1)
    begins, owners = window_owners(len(ids), room, layout.doc_stride)
    for window, begin in enumerate(begins):
        part = slice(begin, begin + room)
        own = np.where(owners[part] == window, numbers[part], _NO_WORD)
        # A window within one long word decides nothing.
        if (own != _NO_WORD).any():
            joined, segments, first = layout.join([ids[part]])
            placed = np.full(len(joined), _NO_WORD, np.int32)
            placed[first : first + len(own)] = own
            yield TokenFeature(index, joined, segments, placed)


class TokenClassification(TaskKind):
    """A tag of each word, by its first token; logits are [L, C].

    Predictions are the indices of tags, int [words] of each example.
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
        """Returns that of the family's head for tokens."""
        if family.has_sequence_head_over_tokens:
            return super().dropout(family)
        return family.token_dropout

    def find_labels(self, spec: TaskSpec, examples: Sequence[TaskExample]) -> tuple[str, ...]:
        """Returns `O`, and each of the scheme's prefixes with each type of training examples."""
        tags = {tag for example in examples for tag in example.label or ()}
        types = sorted({tag.partition("-")[2] for tag in tags - {OUTSIDE_TAG}})
        typed = (f"{prefix}-{name}" for name in types for prefix in SCHEMES[spec.scheme])
        return (OUTSIDE_TAG, *typed)

    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields tagged sentences, of columns or of JSON lines of a text and its entities."""
        read = _read_columns if data.spec.reader == "conll" else _read_entities
        examples = (example for path in paths for example in read(data, path))
        for number, example in enumerate(examples):
            if example is not None:
                yield dataclasses.replace(example, key=example.key or str(number))

    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Makes `[CLS] sentence [SEP]` of each example, or of windows of a long one.

        Each word is decided in one window only, and each window decides a word.
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
        """Returns int32 [L] of each feature: the tag's index where it decides a word, else -1."""
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
        """Returns [B, L], 0 where no word is decided."""
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
        """Returns the scores of entities."""
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
    """Yields the sentences of a file of columns; None for one that cannot be used."""
    spec = data.spec
    may_lack = not data.labelled and spec.columns[-1] == spec.label_field
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
        # Of a test file the last may be missing.
        fields = dict(zip(spec.columns, cells, strict=False))
        words.append(_find_word(spec, fields[word_column], f"{where}: {word_column}"))
        if spec.label_field in fields:
            place = f"{where}: {spec.label_field}"
            tags.append(_expect_tag(spec, fields[spec.label_field].strip(), place))
    if len(tags) not in (0, len(words)):
        raise InputError(sentence[0][0], "a sentence with tags in all lines or in none", len(tags))
    return TaskExample("", tuple(words), tuple(tags) or None)


def _find_word(spec: TaskSpec, cell: str, where: str) -> str:
    """Returns the word of a cell, which may say more."""
    if not spec.word_pattern:
        return cell
    match = re.fullmatch(spec.word_pattern, cell)
    if match is None:
        raise InputError(where, f"a word as `word_pattern` ({spec.word_pattern})", shown(cell))
    return match[1]


def _expect_tag(spec: TaskSpec, tag: str, where: str) -> str:
    if not is_tag(tag, spec.scheme):
        expected = f"a tag of the scheme {spec.scheme} ({describe_tags(spec.scheme)})"
        raise InputError(where, expected, shown(tag))
    if spec.labels and tag not in spec.labels:
        raise InputError(where, f"one of {', '.join(spec.labels)}", shown(tag))
    return tag


def _read_entities(data: SplitData, path: Location) -> Iterator[TaskExample | None]:
    """Yields the texts of JSON lines, each character a word; None for one that is bad."""
    spec = data.spec
    needed = (*spec.text_fields, *([spec.label_field] if data.labelled else []))
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
            raise InputError(f"{where}: {name}", "text", shown(value))
    if spec.label_field not in fields:
        return TaskExample(key, tuple(text))
    place = f"{where}: {spec.label_field}"
    named = json_text.convert(
        fields[spec.label_field], dict[str, dict[str, list[tuple[int, int]]]], place
    )
    entities = sorted(
        (
            _locate(text, words, *ends, entity_type, place)
            for entity_type, spans_of_words in named.items()
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
    """Returns an entity that a file names by its first and its last character."""
    if not 0 <= first <= last < len(text) or text[first : last + 1] != words:
        raise InputError(place, f"{shown(words)} at the characters {first} to {last}", "none")
    return entity_type, first, last


KIND = TokenClassification()
