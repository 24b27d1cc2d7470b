"""Tasks whose files contain rows of one or two texts and a label."""

import abc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_specs.tasks import TaskSpec
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from tools.finetuning.inputs import Feature, Layout, truncated_lengths
from tools.finetuning.kinds.base import Predictions, TaskKind, WriteSubmission
from tools.finetuning.task_files import SplitData, TaskExample, is_text, read_rows

# A metric of predictions and labels.
Score = Callable[[np.ndarray, np.ndarray], float]


class LabeledRows(TaskKind):
    """A kind of task whose examples have one label each.

    Attributes:
        metrics: the metrics of predictions and labels, by name.
        label_dtype: dtype of labels in batches.
    """

    architecture = "ForSequenceClassification"
    pipeline_tag = "text-classification"
    metrics: ClassVar[Mapping[str, Score]]
    label_dtype: ClassVar[type]

    @abc.abstractmethod
    def parse_label(self, spec: TaskSpec, text: str) -> int | float | None:
        """Returns the label of a file's text; None if the text is not a label."""

    @abc.abstractmethod
    def describe_label(self, spec: TaskSpec) -> str:
        """Returns a phrase for the valid labels, for messages."""

    @abc.abstractmethod
    def label_words(self, spec: TaskSpec, predictions: Predictions) -> list[str]:
        """Returns predictions as the file writes labels."""

    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields the examples of the rows that are not left out."""
        spec = data.spec
        needed = (*spec.text_fields, *([spec.label_field] if data.labeled else []))
        number = 0
        for path in paths:
            for row in read_rows(spec, path, needed, data.bad_row):
                example = None if row is None else self._example(data, *row, str(number))
                number += 1
                if example is not None:
                    yield example

    def _example(
        self, data: SplitData, where: str, fields: Mapping[str, Any], number: str
    ) -> TaskExample | None:
        """Returns the example of a row; None if the row is left out."""
        spec = data.spec
        key = str(fields.get(spec.id_field, number))
        named = ((name, fields[name]) for name in spec.text_fields)
        for name, text in (*named, (spec.id_field, key)):
            if not is_text(text):
                data.bad_row(InputError(f"{where}: {name}", "text", format_value(text)))
                return None
        texts = tuple(fields[name] for name in spec.text_fields)
        if not data.labeled and spec.label_field not in fields:
            return TaskExample(key, texts)
        value = fields[spec.label_field]
        text = str(value) if isinstance(value, str | int | float) else repr(value)
        if text in spec.skip_labels:
            data.num_left_out += 1
            return None
        label = self.parse_label(spec, text)
        if label is None:
            label_place = f"{where}: {spec.label_field}"
            data.bad_row(InputError(label_place, self.describe_label(spec), format_value(text)))
            return None
        return TaskExample(key, texts, label)

    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Returns one feature for each example.

        One text becomes `[CLS] a [SEP]`, two become `[CLS] a [SEP] b [SEP]`. Texts that are
        too long are cut at their ends, the longer one first (Devlin et al. 2018).
        """
        return [_feature(layout, index, example) for index, example in enumerate(examples)]

    def targets(
        self, examples: Sequence[TaskExample], features: Sequence[Feature], labels: Sequence[str]
    ) -> np.ndarray:
        """Returns classes, int32 [N], or numbers, float32 [N]."""
        values = [examples[feature.example].label for feature in features]
        return np.array(values, self.label_dtype)

    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns the task's metrics for class indices, int [N], or numbers, float [N]."""
        labels = np.array([example.label for example in examples])
        values = np.asarray(predictions)
        if values.shape != labels.shape:
            raise ValueError(f"expected {len(labels)} predictions, received {list(values.shape)}")
        return {name: self.metrics[name](values, labels) for name in spec.metrics}

    def keyed_words(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> list[tuple[str, str]]:
        """Returns each example's key, and its prediction as the file writes labels."""
        if len(predictions) != len(examples):
            raise ValueError(f"expected {len(examples)} predictions, received {len(predictions)}")
        words = self.label_words(spec, predictions)
        return [(example.key, word) for example, word in zip(examples, words, strict=True)]

    def _clue(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> bytes:
        lines = (
            {"id": json_id(key), "label": word}
            for key, word in self.keyed_words(spec, examples, predictions)
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return text.encode("utf-8")

    def _glue(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> bytes:
        rows = [("index", "prediction"), *self.keyed_words(spec, examples, predictions)]
        return "".join(f"{key}\t{word}\n" for key, word in rows).encode("utf-8")

    @property
    def submissions(self) -> Mapping[str, WriteSubmission]:
        """The formats of CLUE and GLUE.

        CLUE takes JSON lines, `{"id": 0, "label": "1"}`. GLUE takes a TSV with the header
        `index`, `prediction`: class names, or numbers within the range with three decimals.
        """
        return {"clue": self._clue, "glue": self._glue}


def json_id(key: str) -> int | str:
    """Returns an example's key as CLUE writes it: an integer if it consists of digits."""
    return int(key) if key.isascii() and key.isdigit() else key


def _feature(layout: Layout, index: int, example: TaskExample) -> Feature:
    texts = [layout.tokenizer.tokenize(text).ids for text in example.texts]
    lengths = [layout.room(len(texts))]
    if len(texts) == 2:
        lengths = truncated_lengths(len(texts[0]), len(texts[1]), *lengths)
    texts = [ids[:length] for ids, length in zip(texts, lengths, strict=True)]
    ids, segments, _ = layout.join(texts)
    return Feature(index, ids, segments)
