"""Declared fine-tuning tasks: typed declarations, one YAML file each in `tasks/`.

A declaration describes the layout of a task's files, the kind of prediction, the metrics
and the submission format.
"""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from data_specs import declarations
from data_specs.declarations import Words

FOLDER = pathlib.Path(__file__).with_name("tasks")

# The kinds of prediction: one of several classes, a number, a span of the second text, or a
# tag for each word.
CLASSIFICATION = "classification"
REGRESSION = "regression"
SPAN = "span"
TOKEN_CLASSIFICATION = "token_classification"
# The meaning of quotation marks in a TSV or CSV file. With "none" they are ordinary characters.
# With "double" they enclose a field, which may then contain separators and line breaks.
QUOTING = ("none", "double")
# The prefixes of tags by scheme: B begins an entity, I continues it, E ends it, and S marks an
# entity of a single word.
SCHEMES = {"bio": "BI", "bioes": "BIES"}
# The tag of words outside every entity.
OUTSIDE_TAG = "O"
# The scores of each span metric. Every other metric has one score with its own name.
SPAN_SCORES = ("f1", "exact_match")


class KindRules(msgspec.Struct, frozen=True, kw_only=True):
    """The valid values in declarations of a kind of task.

    Attributes:
        metrics: the names of its metrics.
        readers: the readers of its files.
        submissions: its submission formats.
    """

    metrics: tuple[str, ...]
    readers: tuple[str, ...]
    submissions: tuple[str, ...]


_ROWS = ("json_lines", "tsv", "csv")
KINDS: Mapping[str, KindRules] = {
    CLASSIFICATION: KindRules(
        metrics=("accuracy", "f1", "f1_weighted", "matthews"),
        readers=_ROWS,
        submissions=("clue", "glue"),
    ),
    REGRESSION: KindRules(
        metrics=("pearson", "spearman"), readers=_ROWS, submissions=("clue", "glue")
    ),
    SPAN: KindRules(
        metrics=("squad", "mlqa_zh", "cmrc"), readers=("squad",), submissions=("squad",)
    ),
    TOKEN_CLASSIFICATION: KindRules(
        metrics=("f1", "precision", "recall", "f1_macro"),
        readers=("conll", "json_lines"),
        submissions=("conll", "cluener"),
    ),
}

_METADATA = ("title", "url", "licence", "language", "submission")
# Fields that were added later. They are left out at their defaults, so that the run
# configuration of an older task does not change.
_LATER = {"scheme": "bio", "word_pattern": ""}


def _all_values(field: str) -> tuple[str, ...]:
    """Returns the distinct values of a field of `KindRules`, from all kinds of tasks."""
    values = (value for rules in KINDS.values() for value in getattr(rules, field))
    return tuple(dict.fromkeys(values))


METRICS: Mapping[str, tuple[str, ...]] = {kind: rules.metrics for kind, rules in KINDS.items()}
READERS = _all_values("readers")
SUBMISSIONS = _all_values("submissions")


class SubmissionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The submission file of a benchmark.

    Attributes:
        file: the file name that the benchmark expects.
        format: one of `SUBMISSIONS`. `clue` is JSON lines of `id` and `label`; `glue` a TSV
            with the header `index`, `prediction`; `squad` one JSON object of answers by id;
            `conll` lines of a word, a tab and its tag; `cluener` JSON lines of `id` and
            entities by type.
        split_files: the file names of splits that use a different one.
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
        """Returns the file name of a split."""
        return self.split_files.get(split, self.file)


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The declaration of a task: its files, its kind of prediction and its metrics.

    Attributes:
        name: the value of the setting `task`.
        title: a description for readers.
        url: the source of the data.
        licence: the license of the data.
        language: a language code, for example `zh`.
        kind: one of `KINDS`.
        text_fields: one or two fields of a row. In a `squad` file, always question and
            context; in a `conll` file, the column of words.
        files: for each split, the names or globs of its files. The first name or glob that
            matches is used; all files that it matches are read. Splits whose name begins with
            `test` need no labels.
        metrics: one or more of the metrics of the kind, the main one first: `METRICS`.
        submission: file name and format of the predictions, for example
            `{file: places.tsv, format: glue}`.
        label_field: the field of a row that contains its label.
        labels: the labels as in the file, in the order of the classes. The second is the
            positive one of `f1` and `matthews`. For token classification, all tags; without
            them, the tags of the training file are used.
        skip_labels: labels whose rows are left out.
        score_range: range of a regression; predictions are clipped to it in a submission.
        id_field: the field with the id of a row; rows without it are numbered from 0.
        reader: one of `READERS`. `squad` is SQuAD's JSON; `conll` has columns separated by
            tabs or spaces, one word in each line and a blank line after each sentence.
        header: whether the first row of a TSV or CSV file names its columns.
        columns: the names of columns for files without a header. A first row that contains
            all names of `text_fields` is nevertheless read as a header, as in CoLA's test file.
        quoting: quotation marks in TSV and CSV, one of `QUOTING`: `none` reads them as text,
            `double` as the limits of a cell.
        scheme: the prefixes of tags, one of `SCHEMES`.
        word_pattern: a regular expression that matches the whole cell of a word, and whose
            only group is the word; empty if the cell is the word.
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
    scheme: str = "bio"
    word_pattern: str = ""

    def __post_init__(self) -> None:
        declarations.expect_one_of("kind", self.kind, tuple(KINDS))
        declarations.expect_one_of("reader", self.reader, READERS)
        declarations.expect_one_of("quoting", self.quoting, QUOTING)
        declarations.expect_one_of("scheme", self.scheme, tuple(SCHEMES))
        for metric in self.metrics:
            declarations.expect_one_of("metrics", metric, METRICS[self.kind])
        if len(self.text_fields) > 2:
            raise ValueError(f"text_fields: expected one or two, received {len(self.text_fields)}")
        self._check_presence()
        self._check_labels()
        self._check_tags()
        self._check_files()

    def _check_presence(self) -> None:
        is_class, is_number, is_span, is_tags = (
            self.kind == kind for kind in (CLASSIFICATION, REGRESSION, SPAN, TOKEN_CLASSIFICATION)
        )
        for key, requirement, is_given, belongs in (
            (
                "labels",
                "two or more labels if kind is classification, and unset if it is regression or "
                "span",
                len(self.labels) > 1,
                is_class,
            ),
            (
                "label_field",
                "set unless kind is span, and unset if it is",
                self.label_field != "",
                not is_span,
            ),
            (
                "score_range",
                "two numbers if kind is regression, and unset otherwise",
                len(self.score_range) == 2,
                is_number,
            ),
            ("reader", "squad if and only if kind is span", self.reader == "squad", is_span),
            (
                "columns",
                "the names of all columns if header is false, and unset otherwise",
                len(self.columns) > 0,
                not self.header,
            ),
        ):
            if is_given != belongs and not (is_tags and key == "labels"):
                received = declarations.format_value(getattr(self, key))
                condition = f"kind {self.kind}"
                if key == "columns":
                    condition = "header true" if self.header else "header false"
                raise ValueError(f"{key}: must be {requirement}; got {received} with {condition}")

    def _check_labels(self) -> None:
        counts = collections.Counter(self.labels + self.skip_labels)
        repeated = next((label for label, count in counts.items() if count > 1), None)
        if repeated is not None:
            received = declarations.format_value(repeated)
            raise ValueError(
                "labels: each label must occur once and must not be in skip_labels; got "
                f"{received} more than once"
            )
        binary = {"f1", "matthews"} & set(self.metrics)
        if self.kind == CLASSIFICATION and binary and len(self.labels) != 2:
            raise ValueError(
                f"metrics: {min(binary)} requires exactly two labels; got {len(self.labels)}"
            )
        if self.kind == SPAN and len(self.metrics) != 1:
            raise ValueError(
                f"metrics: must be exactly one metric if kind is span; got {len(self.metrics)}"
            )
        unknown = {*self.text_fields, self.label_field} - set(self.columns)
        if self.columns and unknown:
            raise ValueError(f"columns: expected a column {sorted(unknown)[0]}, received none")

    def _check_tags(self) -> None:
        rules = KINDS[self.kind]
        declarations.expect_one_of("reader", self.reader, rules.readers)
        declarations.expect_one_of("submission: format", self.submission.format, rules.submissions)
        if self.kind != TOKEN_CLASSIFICATION:
            return
        if len(self.text_fields) != 1:
            raise ValueError(f"text_fields: expected one, received {len(self.text_fields)}")
        if self.reader == "conll" and not self.columns:
            raise ValueError("columns: must name every column if reader is conll; got none")
        wrong = [tag for tag in self.labels if not is_tag(tag, self.scheme)]
        if self.labels and (wrong or OUTSIDE_TAG not in self.labels):
            received = (
                declarations.format_value(wrong[0]) if wrong else f"none that is {OUTSIDE_TAG}"
            )
            raise ValueError(f"labels: expected {describe_tags(self.scheme)}, received {received}")
        try:
            groups = re.compile(self.word_pattern).groups
        except re.error as error:
            received = f"{declarations.format_value(self.word_pattern)} ({error})"
            raise ValueError(
                f"word_pattern: expected a regular expression, received {received}"
            ) from error
        if self.word_pattern and groups != 1:
            raise ValueError(f"word_pattern: expected one group, received {groups}")

    def _check_files(self) -> None:
        for split, names in self.files.items():
            _expect_plain_name("files", split)
            for name in names:
                declarations.expect_path("files", name)
                steps = pathlib.PurePosixPath(name).parts
                if not steps or name.startswith("/") or ".." in steps:
                    received = declarations.format_value(name)
                    raise ValueError(f"files: expected names below the folder, received {received}")

    @property
    def main_metric(self) -> str:
        """The score that compares models: a key of `tools.finetuning.scoring.evaluate`."""
        return SPAN_SCORES[0] if self.kind == SPAN else self.metrics[0]

    def reading(self) -> dict[str, Any]:
        """Returns the fields that determine the examples and the scores."""
        values = msgspec.structs.asdict(self)
        left_out = [name for name, default in _LATER.items() if values[name] == default]
        return {name: values[name] for name in values if name not in (*_METADATA, *left_out)}


def is_tag(tag: str, scheme: str) -> bool:
    """Returns whether a tag is valid: `O`, or a prefix of the scheme, a hyphen and a type."""
    prefix, hyphen, entity_type = tag.partition("-")
    is_typed = prefix in tuple(SCHEMES[scheme]) and hyphen and entity_type
    return tag == OUTSIDE_TAG or bool(is_typed)


def describe_tags(scheme: str) -> str:
    """Returns a phrase for the tags of a scheme, for messages."""
    prefixed = ", ".join(f"{prefix}-TYPE" for prefix in SCHEMES[scheme])
    return f"{OUTSIDE_TAG}, {prefixed}"


def load_task(name_or_path: str) -> TaskSpec:
    """Loads a declaration.

    Args:
        name_or_path: the name of a file in `tasks/`, or the path of another `.yaml` file.

    Raises:
        ValueError: the declaration is missing or invalid; names the key.
    """
    path = declarations.find_declaration(FOLDER, name_or_path)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(TaskSpec, values, str(path))


def _expect_plain_name(key: str, name: str) -> None:
    """Checks the name of a file or directory, which must not contain a path."""
    declarations.expect_path(key, name)
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(
            f"{key}: expected a plain name, received {declarations.format_value(name)}"
        )
