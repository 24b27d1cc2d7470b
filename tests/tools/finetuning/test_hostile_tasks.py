"""Hostile task files: unterminated rows and brackets, and answers with many occurrences."""

import gc
import json
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import tasks
from pipeline.base.errors import InputError
from tests.tools.finetuning.squad_files import squad_json
from tools.finetuning import task_data, task_files
from tools.finetuning.kinds import span


def _refusal(folder: pathlib.Path, task: str, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        task_data.read_split(tasks.load_task(task), folder, "train")
    message = str(error.value)
    assert message.startswith(str(folder / name))
    assert len(message.splitlines()) == 1 and len(message) < 2000
    return message


_COLUMNS = {"two\nlines": 1, **{f"{number}" * 99: 1 for number in range(99)}}
_LABEL = '{"sentence1": "a", "sentence2": "b", "label": %s}'


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (_LABEL % ("[" * 300 + "]" * 300), "line 1: expected a JSON object"),
        (_LABEL % ("[" * 100_000), "line 1: expected a JSON object"),
        (_LABEL % ("9" * 5000), "line 1: expected a JSON object"),
        (
            _LABEL % json.dumps(["two\nlines"] * 5000),
            "line 1: label: expected one of 0, 1, received",
        ),
        (json.dumps(_COLUMNS), "fields sentence1, sentence2, label, received two lines, "),
    ],
    ids=["deep", "open", "digits", "long", "columns"],
)
def test_unterminated_content_is_quoted_in_part_and_in_one_line(
    tmp_path, row: str, text: str
) -> None:
    assert text in _refusal(tmp_path, "afqmc", "train.json", f"{row}\n")


def test_quoted_row_has_a_maximum_length(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(task_files, "MAX_ROW_SIZE", 100)
    path = tmp_path / "x.csv"

    def rows(content: str) -> list:
        path.write_text(content, encoding="utf-8")
        with open(path, "rb") as stream:
            return list(task_files._quoted_cells(path, stream, ","))

    # Three rows of a hundred letters; the last row has two lines.
    valid_rows = f'{"a" * 99}\n{"b" * 99}\n"{"c" * 50}\n{"d" * 46}"\n'
    assert [len(cells[0]) for _, cells in rows(valid_rows)] == [99, 99, 97]
    for wrong in ("a" * 101, '"\n",' * 40, "b\n" + "a" * 101):
        with pytest.raises(InputError, match=f"^{path}, line .*a row of more than 100 characters"):
            rows(wrong)


def _nearest(context: str, answer: task_files.Answer) -> int | None:
    """Returns the nearest position of an answer by testing all; of two, the earlier one."""
    positions = [
        position
        for position in range(len(context) + 1)
        if context.startswith(answer.text, position)
    ]
    return min(
        positions, key=lambda position: (abs(position - answer.start), position), default=None
    )


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3), st.integers(-5, 20))
def test_answer_is_located_at_the_nearest_occurrence(context: str, text: str, start: int) -> None:
    answer = task_files.Answer(text, start)
    assert span._locate(context, answer) == _nearest(context, answer)


def test_answers_with_many_occurrences_are_located_quickly(tmp_path) -> None:
    """Each of 300 answers occurs 300,000 times, but never at its declared position."""
    questions = [(f"q{n}", "where?", [("a", 900_000 + n)]) for n in range(300)]
    path = tmp_path / "train.json"
    path.write_text(squad_json(("a" * 300_000, questions)), encoding="utf-8")
    begun = time.process_time()
    data = task_data.read_split(tasks.load_task("cmrc2018"), tmp_path, "train")
    assert time.process_time() - begun < 5.0
    assert {example.answers[0].start for example in data.examples} == {299_999}


@pytest.mark.parametrize("key", [["two\nlines"], "two\nlines"])
def test_question_ids_are_shown_in_one_line(tmp_path, key: object) -> None:
    value = json.loads(squad_json(("一二", [("q", "?", [("三", 0)])])))
    value["data"][0]["paragraphs"][0]["qas"][0]["id"] = key
    assert "question" in _refusal(tmp_path, "cmrc2018", "train.json", json.dumps(value))


@pytest.mark.filterwarnings("error")
def test_file_is_closed_after_an_invalid_header(tmp_path) -> None:
    spec = tasks.load_task("rusentiment")
    name = spec.files["train"][0].replace("*", "x")
    (tmp_path / name).write_text('one,"two"\n1,2\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 1: .*the columns"):
        task_data.read_split(spec, tmp_path, "train")
    gc.collect()


@pytest.mark.parametrize("name", ["../x.tsv", "/x", "a/../x", "x\0", "\ud800", "x" * 300, 1])
def test_invalid_names_of_prediction_files_are_rejected(tmp_path, name: object) -> None:
    from tools.finetuning import training

    report = {"metrics": {"accuracy": 0.5}, "counts": {}, "predictions": ["x.tsv"]}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(report))
    assert training._read_result(tmp_path).predictions == (tmp_path / "x.tsv",)
    path.write_text(json.dumps({**report, "predictions": [name]}))
    with pytest.raises(InputError) as caught:
        training._read_result(tmp_path)
    assert caught.value.subject.startswith(f"{path}: predictions")
