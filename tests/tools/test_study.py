"""A complete tiny study of a teacher without a head, killed once; and refused settings."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from absl import flags as absl_flags
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError, Setting
from pipeline.commands import flags
from tests.conftest import ROOT
from tools import study as tool
from tools.teacher_study.settings import StudyConfig


@pytest.fixture(scope="module")
def bare_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """The teacher's encoder in the layout of `BertModel`."""
    folder = tmp_path_factory.mktemp("bare") / "encoder"
    shutil.copytree(teacher_dir, folder)
    weights = load_file(folder / "model.safetensors")
    encoder = {name: value for name, value in weights.items() if not name.startswith("cls.")}
    save_file(encoder, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("tasks", "received"),
    [
        ("tnews", "'tnews'"),
        ("tnews=.,tnews=.", "'tnews=.'"),
        ("tnews=.,own/tnews.yaml=.", "'own/tnews.yaml=.'"),
        ("tnews=nowhere", "no such folder"),
        ("tnews=.", "no such file"),
        ("news=.", "news"),
    ],
)
def test_unreadable_tasks_are_refused_before_training(tmp_path, tasks: str, received: str) -> None:
    with pytest.raises(InputError) as caught:
        StudyConfig(teacher=tmp_path, input_dir="text", work=tmp_path, tasks=tasks)
    assert "tasks" in (caught.value.subject, caught.value.setting)
    assert received in str(caught.value.received)


def test_recipe_of_labels_alone_is_refused(teacher_dir, tmp_path) -> None:
    config = StudyConfig(
        teacher=teacher_dir,
        input_dir="text",
        work=tmp_path,
        tasks={"tnews": tmp_path},
        recipes="masked_lm=2",
    )
    with pytest.raises(InputError) as caught:
        tool.find_study(config)
    assert caught.value.subject == Setting("recipes")


def test_more_layers_than_the_teacher_has_are_refused(teacher_dir, tmp_path) -> None:
    settings = {"input_dir": "text", "work": tmp_path, "tasks": {"tnews": tmp_path}}
    with pytest.raises(InputError) as caught:
        tool.find_study(StudyConfig(teacher=teacher_dir, student_layers=9, **settings))
    assert caught.value.subject == Setting("student_layers")


def test_student_has_half_of_the_layers_by_default(bare_dir, teacher_dir, tmp_path) -> None:
    settings = {"input_dir": "text", "work": tmp_path, "tasks": {"tnews": tmp_path}}
    study = tool.find_study(StudyConfig(teacher=teacher_dir, **settings))
    assert (study.student_layers, study.has_head) == (1, True)
    assert [variant.recipe for variant in study.variants] == [
        "masked_lm",
        "roberta_wwm",
        "distilbert",
        "minirbt",
    ]
    assert not tool.find_study(StudyConfig(teacher=bare_dir, **settings)).has_head


def test_budget_is_parsed_as_a_duration(tmp_path) -> None:
    values = flags.define_flags(StudyConfig)
    required_flags = [f"--{name}={tmp_path}" for name in ("teacher", "input_dir", "work")]
    values(["study", *required_flags, "--budget=1h30m"])
    assert values.budget == 5400.0
    with pytest.raises(absl_flags.IllegalFlagValueError):
        flags.define_flags(StudyConfig)(["study", *required_flags, "--budget=soon"])


def _arguments(bare_dir, corpus_dir, sentiment_dir, work: pathlib.Path) -> list[str]:
    return [
        f"--teacher={bare_dir}",
        f"--input_dir={corpus_dir}",
        f"--work={work}",
        f"--tasks=chnsenticorp={sentiment_dir}",
        "--recipes=kl_divergence=1@compact-4,kl_divergence=2@live",
        "--budget=1s",
        "--train_batch_size=4",
        "--max_seq_length=32",
        "--num_shards=4",
        "--max_eval_steps=1",
        "--student_layers=1",
        "--compute_dtype=float32",
    ]


@pytest.mark.slow
def test_killed_study_resumes_and_completes(
    bare_dir, corpus_dir, sentiment_dir, tmp_path, capsys
) -> None:
    work = tmp_path / "work"
    arguments = _arguments(bare_dir, corpus_dir, sentiment_dir, work)
    command = [sys.executable, "-m", "tools.study", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    # The process is killed while it trains the head, whose directory is then reserved.
    while not (work / "teacher" / "request.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert tool.main(["study", *arguments]) == 0
    report = json.loads((work / "study.json").read_text())
    # After one second, only the number of the head's steps has been chosen from the budget.
    assert 50 <= report["head"]["num_train_steps"] <= 1000
    assert report["sizes"] == {"num_train_steps": 20, "task_examples": {"chnsenticorp": 64}}
    roles = [model["role"] for model in report["models"]]
    assert roles == ["teacher", "baseline", *["distilled"] * 2, *["continued"] * 2]
    for model in report["models"]:
        assert len(model["scores"]["chnsenticorp"]["values"]) == 2
    assert len(report["sentences"]) == 2
    assert report["sentences"][0] in (work / "study.md").read_text()
    # No step is repeated.
    capsys.readouterr()
    assert tool.main(["study", *arguments]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(titles) > 40 and all("(done before)" in line for line in titles)
