"""Known tasks to fine-tune on: typed declarations, one YAML file each in `tasks/`.

A declaration says what a task's own files look like, what is predicted, how the
predictions are scored and how they are handed in.
"""

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from data_specs import declarations
from data_specs.declarations import Words

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


class SubmissionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How predictions are handed in.

    Attributes:
        file: the name that the benchmark expects.
        format: one of `SUBMISSIONS`: JSON lines of `id` and `label`; a TSV with
            the header `index`, `prediction`; one JSON object of answers by id.
        split_files: the names of splits that have another one.
    """

    file: str
    format: str
    split_files: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        _expect_plain_name("file", self.file)
        for name in self.split_files.values():
            _expect_plain_name("split_files", name)
        declarations.expect_one_of("format", self.format, SUBMISSIONS)

    def file_of(self, split: str) -> str:
        """Returns the name of a split's file."""
        return self.split_files.get(split, self.file)


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task's files hold, and how predictions are scored.

    Attributes:
        name: its name for `task`.
        title: a description, for people.
        url: its source.
        licence: its licence.
        language: a code such as `zh`.
        kind: one of `KINDS`.
        text_fields: one or two fields of a row; of a `squad` file always question and context.
        files: for each split the names or globs of its files, the first that match taken; several
            matches are read one after another. Splits whose name begins with `test` need no labels.
        metrics: of `METRICS`, the main one first.
        submission: how predictions are handed in.
        label_field: the field of a row that is its label.
        labels: the labels as in the file; their order is that of the classes.
            The second is the positive one of `f1` and `matthews`.
        skip_labels: rows with these are left out.
        score_range: of a regression; predictions are cut to it where they are handed in.
        id_field: the field that names a row, where it has one; elsewhere its number, from 0.
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
    text_fields: Words
    files: Annotated[Mapping[str, Words], msgspec.Meta(min_length=1)]
    metrics: Words
    submission: SubmissionSpec
    label_field: str = ""
    labels: Words = ()
    skip_labels: Words = ()
    score_range: tuple[float, ...] = ()
    id_field: str = ""
    reader: str = "json_lines"
    header: bool = True
    columns: Words = ()
    quoting: str = "none"

    def __post_init__(self) -> None:
        declarations.expect_one_of("kind", self.kind, KINDS)
        declarations.expect_one_of("reader", self.reader, READERS)
        declarations.expect_one_of("quoting", self.quoting, QUOTING)
        for metric in self.metrics:
            declarations.expect_one_of("metrics", metric, METRICS[self.kind])
        if len(self.text_fields) > 2:
            raise ValueError(f"text_fields: expected one or two, received {len(self.text_fields)}")
        self._check_presence()
        self._check_labels()
        self._check_files()

    def _check_presence(self) -> None:
        is_class, is_number, is_span = (self.kind == kind for kind in KINDS)
        for key, expected, is_given, belongs in (
            ("labels", "two or more with kind: classification", len(self.labels) > 1, is_class),
            ("label_field", "a name except with kind: span", self.label_field != "", not is_span),
            ("score_range", "two with kind: regression", len(self.score_range) == 2, is_number),
            ("reader", "squad with kind: span", self.reader == "squad", is_span),
            ("columns", "all with header: false", len(self.columns) > 0, not self.header),
        ):
            if is_given != belongs:
                received = declarations.shown(getattr(self, key))
                raise ValueError(f"{key}: expected {expected} and only there, received {received}")

    def _check_labels(self) -> None:
        if len(set(self.labels) | set(self.skip_labels)) != len(self.labels + self.skip_labels):
            raise ValueError("labels: expected each once, and none that skip_labels leaves out")
        binary = {"f1", "matthews"} & set(self.metrics)
        if binary and len(self.labels) != 2:
            raise ValueError(
                f"metrics: expected {min(binary)} with two labels, received {len(self.labels)}"
            )
        if self.kind == "span" and len(self.metrics) != 1:
            raise ValueError("metrics: expected one with kind: span, received several")
        unknown = {*self.text_fields, self.label_field} - set(self.columns)
        if self.columns and unknown:
            raise ValueError(f"columns: expected {sorted(unknown)[0]} among them, found none")

    def _check_files(self) -> None:
        for split, names in self.files.items():
            _expect_plain_name("files", split)
            for name in names:
                declarations.expect_path("files", name)
                steps = pathlib.PurePosixPath(name).parts
                if not steps or name.startswith("/") or ".." in steps:
                    received = declarations.shown(name)
                    raise ValueError(f"files: expected names below the folder, received {received}")

    @property
    def main_metric(self) -> str:
        """The score that decides: a key of what `tools.finetuning.scoring.evaluate` gives."""
        return SPAN_SCORES[0] if self.kind == "span" else self.metrics[0]

    def reading(self) -> dict[str, Any]:
        """Returns the settings that decide the examples and the scores."""
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if name not in _METADATA}


def load_task(name_or_path: str) -> TaskSpec:
    """Loads a declaration.

    Args:
        name_or_path: the name of a file in `tasks/`, or the path of a `.yaml` file like them.

    Raises:
        ValueError: it does not exist, or is invalid; names the key.
    """
    path = declarations.find_declaration(FOLDER, name_or_path)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(TaskSpec, values, str(path))


def _expect_plain_name(key: str, name: str) -> None:
    """Checks the name of a file or folder: it must not lead out of where it is written."""
    declarations.expect_path(key, name)
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"{key}: expected a plain name, received {declarations.shown(name)}")
