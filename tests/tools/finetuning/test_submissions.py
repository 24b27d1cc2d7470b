"""Submission files in the benchmarks' formats, compared byte by byte."""

import json

import pytest

from data_specs import tasks
from tools.finetuning.kinds.span import Prediction
from tools.finetuning.scoring import write_submission
from tools.finetuning.task_files import TaskExample

EXAMPLES = [TaskExample("0", ("a", "b")), TaskExample("7", ("c", "d"))]


def _written(tmp_path, name: str, predictions) -> str:
    spec = tasks.load_task(name)
    path = tmp_path / spec.submission.file_of("test")
    write_submission(spec, EXAMPLES, predictions, path)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "predictions", "text"),
    [
        (
            "ocnli",
            [2, 0],
            '{"id": 0, "label": "contradiction"}\n{"id": 7, "label": "entailment"}\n',
        ),
        ("tnews", [14, 5], '{"id": 0, "label": "116"}\n{"id": 7, "label": "106"}\n'),
        ("rte", [1, 0], "index\tprediction\n0\tnot_entailment\n7\tentailment\n"),
        ("cola", [1, 0], "index\tprediction\n0\t1\n7\t0\n"),
        # Scores are limited to the range of the task.
        ("stsb", [5.2, 1.23456], "index\tprediction\n0\t5.000\n7\t1.235\n"),
    ],
)
def test_labels_are_written_in_each_benchmarks_format(
    tmp_path, name: str, predictions, text: str
) -> None:
    assert _written(tmp_path, name, predictions) == text


def test_squad_submission_maps_ids_to_answers(tmp_path) -> None:
    text = _written(tmp_path, "cmrc2018", {"7": Prediction("东海", 3, 1.0, ())})
    assert json.loads(text) == {"0": "", "7": "东海"}
    assert "东海" in text


def test_wrong_number_of_predictions_writes_no_file(tmp_path) -> None:
    with pytest.raises(ValueError, match="expected 2 predictions, received 1"):
        _written(tmp_path, "rte", [1])
    assert not list(tmp_path.iterdir())
