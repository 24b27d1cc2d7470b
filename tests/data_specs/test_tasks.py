"""Declarations of tasks: what they must say, and what is refused."""

import pytest

from data_specs import tasks
from data_specs.declarations import known_names
from pipeline.base.errors import InputError
from tools.finetuning import task_files

GLUE = ("sst2", "mrpc", "cola", "rte", "qnli", "qqp", "mnli", "stsb")
CLUE = ("afqmc", "cmnli", "ocnli", "tnews", "cmrc2018")
OTHERS = ("lcqmc", "chnsenticorp", "squad", "xquad_en", "xquad_ru", "xquad_zh", "rusentiment")
TAGS = ("weibo_ner", "msra_ner", "peoples_daily_ner", "cluener", "conll2003", "wnut17", "wikiann",
        "collection3")  # fmt: skip
SIMILARITIES = ("stsb_multi_mt", "stsb_json")
MINE = """
title: mine
url: https://example.org
licence: mine
language: en
kind: classification
text_fields: [text]
label_field: label
labels: [bad, good]
files: {train: [train.json], dev: [dev.json]}
metrics: [accuracy]
submission: {file: mine.json, format: clue}
"""


def test_the_known_tasks() -> None:
    known = {*GLUE, *CLUE, *OTHERS, *TAGS, *SIMILARITIES}
    assert {path.stem for path in tasks.FOLDER.glob("*.yaml")} == known


@pytest.mark.parametrize("name", known_names(tasks.FOLDER))
def test_each_declaration_has_title_url_licence_and_splits(name: str) -> None:
    spec = tasks.load_task(name)
    assert spec.name == name and spec.title and spec.licence and spec.url.startswith("https://")
    # WikiANN is in many languages.
    assert spec.language in ("zh", "ru", "en", "mul") and (spec.language == "mul") == (
        name == "wikiann"
    )
    assert {"train", "dev"} <= set(spec.files)
    assert not set(spec.submission.split_files) - set(spec.files)


@pytest.mark.parametrize(
    ("name", "metric"),
    [("cola", "matthews"), ("stsb", "pearson"), ("squad", "f1"), ("rusentiment", "f1_weighted")],
)
def test_the_main_metric(name: str, metric: str) -> None:
    assert tasks.load_task(name).main_metric == metric


def test_mnli_is_handed_in_as_two_files() -> None:
    submission = tasks.load_task("mnli").submission
    assert submission.file_of("test") == "MNLI-m.tsv"
    assert submission.file_of("test_mismatched") == "MNLI-mm.tsv"


def test_metadata_are_no_part_of_the_run_configuration() -> None:
    reading = tasks.load_task("ocnli").reading()
    assert reading["labels"] == ("entailment", "neutral", "contradiction")
    assert not {"title", "url", "licence", "language"} & set(reading)


def test_a_declaration_of_the_user_is_read(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    spec = tasks.load_task(str(path))
    assert (spec.name, spec.labels, spec.files["dev"]) == ("mine", ("bad", "good"), ("dev.json",))


def test_an_unknown_task_is_refused() -> None:
    for name in ("glue", "../tasks/rte", "/etc/passwd", "no.yaml"):
        with pytest.raises(ValueError, match="expected one of afqmc, .* or a .yaml file"):
            tasks.load_task(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: class", "kid: class", ".*unknown field 'kid', expected fields of name, title"),
        ("title: mine\n", "", ".*missing required field 'title'"),
        ("kind: classification", "kind: sorting", "kind: expected one of classification, regr"),
        ("label_field: label\n", "label_field: label\nreader: xls\n", "reader: expected one of js"),
        ("[accuracy]", "[acuracy]", "metrics: expected one of accuracy, .*, received 'acuracy'"),
        ("[accuracy]", "[pearson]", "metrics: expected one of accuracy, .*, received 'pearson'"),
        ("[accuracy]", "accuracy", "metrics: Expected 'array', got 'str'"),
        ("[bad, good]", "[0, 1]", r"labels\[0\]: Expected 'str', got 'int'"),
        ("[bad, good]", "[good, good]", "labels: each label must occur once"),
        ("[bad, good]", "[good]", "labels: must be two or more labels if kind is classif"),
        ("[bad, good]", "[a, b, c]\nmetrics: [f1]", "metrics: f1 requires exactly two labels"),
        ("label_field: label\n", "", "label_field: must be set unless kind is span"),
        ("[text]", "[a, b, c]", "text_fields: expected one or two, received 3"),
        ("language: en", "language: en\nheader: false", "columns: must be the names of all col"),
        ("language: en", "language: en\ncolumns: [a]", r"columns: .* got \('a',\)"),
        (
            "language: en",
            "language: en\nheader: false\ncolumns: [text]",
            "columns: expected a column label, received none",
        ),
        ("language: en", "language: en\nheader: 1", "header: Expected 'bool', got 'int'"),
        ("language: en", "language: en\nscore_range: [0, 5]", "score_range: must be two numbers"),
        ("language: en", "language: en\nlanguage: ru", "not YAML .a repeated key"),
        ("[dev.json]", "[../dev.json]", "files: expected names below the folder, received '../dev"),
        ("[dev.json]", "[/dev.json]", "files: expected names below the folder"),
        ("[dev.json]", "!!set {dev.json}", "not YAML .could not determine a constructor"),
        ("{train: ", "{../train: ", "files: expected a plain name, received '../train'"),
        ("{train: ", '{"": [a], train: ', "files: expected a plain name, received ''"),
        ("mine.json", "../../mine.json", "submission: file: expected a plain name, received '../."),
        ("mine.json", "/tmp/mine.json", "submission: file: expected a plain name, received '/tmp"),
        (
            "format: clue",
            "format: clue, split_files: {dev: a/b}",
            "submission: split_files: expected a plain name, received 'a/b'",
        ),
        ("files: {train: [train.json], dev: [dev.json]}", "files: {}", "files: Expected 'object'"),
        ("format: clue", "format: kaggle", "submission: format: expected one of clue, glue, squad"),
        ("format: clue", "form: clue", "submission: .*unknown field 'form'"),
        ("file: mine.json, ", "", "submission: .*missing required field 'file'"),
    ],
)
def test_mistakes_in_a_declaration(tmp_path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    changed = MINE.replace(old, new, 1)
    if new.endswith("metrics: [f1]"):
        changed = changed.replace("metrics: [accuracy]\n", "")
    assert changed != MINE
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        tasks.load_task(str(path))


def test_spans_are_read_from_squads_json_only(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    changed = MINE.replace("label_field: label\n", "").replace("labels: [bad, good]\n", "")
    changed = changed.replace("classification", "span").replace("accuracy", "squad")
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match="reader: must be squad if and only if kind is span"):
        tasks.load_task(str(path))


def test_a_pattern_that_is_none_is_refused(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    content = (tasks.FOLDER / "chnsenticorp.yaml").read_text(encoding="utf-8")
    path.write_text(content.replace("[train.tsv]", "['**x']"), encoding="utf-8")
    spec = tasks.load_task(str(path))
    with pytest.raises(InputError, match="Invalid pattern") as error:
        task_files.find_files(spec, tmp_path, "train")
    assert error.value.subject == "own"
