"""Known tasks to fine-tune on: typed declarations, one YAML file each in `tasks/`.

A declaration says what a task's own files look like, what is predicted, how the
predictions are scored and how they are handed in.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from data_specs import declarations

FOLDER = pathlib.Path(__file__).with_name("tasks")

# What is predicted: one of several classes, a number, or a span of the second text.
KINDS = ("classification", "regression", "span")
# How a file is read; `squad` is SQuAD's JSON.
READERS = ("json_lines", "tsv", "csv", "squad")
# Whether a quotation mark in a TSV or CSV file is a character like any other, or
# encloses a field, which then may hold separators and line breaks.
QUOTING = ("none", "double")
# What a kind of task is scored with.
METRICS = {
    "classification": ("accuracy", "f1", "f1_weighted", "matthews"),
    "regression": ("pearson", "spearman"),
    "span": ("squad", "mlqa_zh", "cmrc"),
}
# What a metric of spans gives; each other metric gives itself.
SPAN_SCORES = ("f1", "exact_match")
SUBMISSIONS = ("clue", "glue", "squad")

_METADATA = ("title", "url", "licence", "language", "submission")


@dataclasses.dataclass(frozen=True)
class SubmissionSpec:
    """How predictions are handed in.

    Attributes:
        file: the name that the benchmark expects.
        format: one of `SUBMISSIONS`: JSON lines of `id` and `label`; a TSV with
            the header `index`, `prediction`; one JSON object of answers by id.
        split_files: the names for splits that have another one.
    """

    file: str
    format: str
    split_files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        declarations.expect_one_of("format", self.format, SUBMISSIONS)

    def file_of(self, split: str) -> str:
        """Returns the name of a split's file."""
        return self.split_files.get(split, self.file)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What a task's files hold, and how predictions are scored.

    Attributes:
        name: what `--task` calls it.
        title: what it is, for people.
        url: where to get it.
        licence: what it may be used for.
        language: a code such as `zh`.
        kind: one of `KINDS`.
        text_fields: the fields of a row that are its text, one or two; of a
            `squad` file always question and context.
        files: for each split the names or globs of its files, the first that
            match taken; several matches are read one after another. Splits
            whose name begins with `test` need no labels.
        metrics: of `METRICS`, the main one first.
        submission: how predictions are handed in.
        label_field: the field of a row that is its label.
        labels: the labels as in the file; their order is that of the classes.
            The second is the positive one of `f1` and `matthews`.
        skip_labels: rows with these are left out.
        score_range: the least and the largest number of a regression; predictions
            are cut to it where they are handed in.
        id_field: the field that names a row, where it has one; elsewhere its
            number, from 0.
        reader: one of `READERS`.
        header: whether the first row of a TSV or CSV file names its columns.
        columns: their names where it does not; a first row that holds the names
            of all texts is a header all the same, as in CoLA's test file.
        quoting: one of `QUOTING`.
    """

    name: str
    title: str
    url: str
    licence: str
    language: str
    kind: str
    text_fields: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    submission: SubmissionSpec
    label_field: str = ""
    labels: tuple[str, ...] = ()
    skip_labels: tuple[str, ...] = ()
    score_range: tuple[float, ...] = ()
    id_field: str = ""
    reader: str = "json_lines"
    header: bool = True
    columns: tuple[str, ...] = ()
    quoting: str = "none"

    def __post_init__(self) -> None:
        declarations.expect_one_of("kind", self.kind, KINDS)
        declarations.expect_one_of("reader", self.reader, READERS)
        declarations.expect_one_of("quoting", self.quoting, QUOTING)
        for metric in self.metrics:
            declarations.expect_one_of("metrics", metric, METRICS[self.kind])
        if not 1 <= len(self.text_fields) <= 2:
            raise ValueError(f"text_fields: expected one or two, received {len(self.text_fields)}")
        self._check_labels()
        self._check_reading()

    def _check_labels(self) -> None:
        if (self.kind == "classification") != (len(self.labels) > 1):
            raise ValueError(
                "labels: expected two or more with kind: classification and only there, "
                f"received {len(self.labels)} with kind: {self.kind}"
            )
        if len(set(self.labels) | set(self.skip_labels)) != len(self.labels + self.skip_labels):
            raise ValueError("labels: expected each once, and none that skip_labels leaves out")
        if (self.kind == "span") == bool(self.label_field):
            raise ValueError(
                "label_field: expected the name of a field but with kind: span, "
                f"received {self.label_field!r} with kind: {self.kind}"
            )
        binary = {"f1", "matthews"} & set(self.metrics)
        if binary and len(self.labels) != 2:
            raise ValueError(
                f"metrics: expected {min(binary)} with two labels, received {len(self.labels)}"
            )
        if (self.kind == "span") and len(self.metrics) != 1:
            raise ValueError("metrics: expected one with kind: span, received several")
        if (self.kind == "regression") != (len(self.score_range) == 2):
            raise ValueError(
                "score_range: expected two numbers with kind: regression and only there, "
                f"received {len(self.score_range)} with kind: {self.kind}"
            )

    def _check_reading(self) -> None:
        if (self.kind == "span") != (self.reader == "squad"):
            raise ValueError(
                "reader: expected squad with kind: span and only there, "
                f"received {self.reader} with kind: {self.kind}"
            )
        if self.header == bool(self.columns):
            raise ValueError(
                "columns: expected the names of all with header: false and only there, "
                f"received {len(self.columns)} with header: {str(self.header).lower()}"
            )
        unknown = {*self.text_fields, self.label_field} - set(self.columns)
        if self.columns and unknown:
            raise ValueError(f"columns: expected {sorted(unknown)[0]} among them, found none")

    @property
    def main_metric(self) -> str:
        """The score that decides: a key of what `tools.finetuning.metrics.evaluate` gives."""
        return SPAN_SCORES[0] if self.kind == "span" else self.metrics[0]

    def reading(self) -> dict[str, Any]:
        """Returns what decides the examples and the scores, without what is said for people."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _METADATA}


def known_tasks() -> tuple[str, ...]:
    """Returns the names of the known tasks."""
    return declarations.known_names(FOLDER)


def load_task(name_or_path: str) -> TaskSpec:
    """Loads a declaration.

    Args:
        name_or_path: one of `known_tasks()`, or the path of a `.yaml` file of the
            same form.

    Raises:
        ValueError: there is none, or it is not as it must be; names the key.
    """
    path = declarations.find_declaration(FOLDER, name_or_path)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(TaskSpec, values, str(path), checks=_CHECKS)


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, received {declarations.shown(value)}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"expected keys and values, received {declarations.shown(value)}")
    return value


def _files(value: Any) -> dict[str, tuple[str, ...]]:
    files = {
        _plain_name(split): declarations.words(names) for split, names in _mapping(value).items()
    }
    if not files:
        raise ValueError("expected the files of each split, received none")
    outside = [
        name
        for names in files.values()
        for name in map(declarations.path_text, names)
        if not _inside(name)
    ]
    if outside:
        raise ValueError(
            f"expected names below the folder, received {declarations.shown(outside[0])}"
        )
    return files


def _inside(name: str) -> bool:
    parts = pathlib.PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _plain_name(value: Any) -> str:
    """Returns the name of a file or a folder that cannot lead out of where it is written."""
    name = declarations.path_text(value)
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"expected a plain name, received {declarations.shown(name)}")
    return name


def _split_files(value: Any) -> dict[str, str]:
    return {split: _plain_name(name) for split, name in _mapping(value).items()}


def _submission(value: Any) -> SubmissionSpec:
    checks = {"file": _plain_name, "split_files": _split_files}
    return declarations.build(SubmissionSpec, _mapping(value), "", checks=checks)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of numbers, received {declarations.shown(value)}")
    return tuple(declarations.number(part) for part in value)


# What a value must be where it is not text.
_CHECKS = {
    "text_fields": declarations.words,
    "files": _files,
    "metrics": declarations.words,
    "submission": _submission,
    "labels": declarations.words,
    "skip_labels": declarations.words,
    "score_range": _numbers,
    "header": _true_or_false,
    "columns": declarations.words,
}
