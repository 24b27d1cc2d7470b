"""The fidelity report: its table, its JSON file and its errors."""

import json
import math

import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import find_model
from tests.conftest import make_cache, save_tiny_bert
from tools import fidelity_report as tool
from tools.fidelity_report import FidelityConfig, report_fidelity


def _run(cache, teacher, *settings: str) -> int:
    flags = (f"--input_dir={cache}", f"--teacher={teacher}", "--sample=12")
    return tool.main(["fidelity_report", *flags, "--predict_batch_size=8", *settings])


def _error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (line,) = lines
    return line


def test_command_writes_and_prints_the_report(cache_dir, teacher_dir, tmp_path, capsys) -> None:
    output = tmp_path / "report.json"
    assert _run(cache_dir, teacher_dir, f"--output={output}") == 0
    report = json.loads(output.read_text())
    names = (
        "teacher compute_dtype cache_compute_dtype truncation_factor logit_encoding num_examples "
        "num_positions kl_divergence top1_agreement mass_kept topk_error tail_error label_error "
        "calibration_error cached_calibration_error hidden bytes_per_position"
    )
    assert set(report) == set(names.split())
    assert report["teacher"] == find_model(teacher_dir).sha256()
    assert report["truncation_factor"] == 16
    assert report["cache_compute_dtype"] == report["compute_dtype"] == "float32"
    assert report["num_examples"] == 12
    assert set(report["kl_divergence"]["2"]) == {"mean", "p99", "max"}
    assert report["kl_divergence"]["1"]["max"] < 1e-4
    assert report["bytes_per_position"] == {
        records.TOPK_IDS: 32.0,
        records.TOPK_LOGITS: 32.0,
        records.LOG_TAIL_MASSES: 8.0,
        records.LABEL_LOG_PROBS: 2.0,
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("KL(teacher || cached), T = 1  ")
    assert f"same top-1 token{' ' * 29}{report['top1_agreement']:.2%}" in lines
    assert lines[-1] == f"report: {output}"


def test_bfloat16_teacher_has_larger_divergence(cache_dir, teacher_dir) -> None:
    settings = {"sample": 12, "predict_batch_size": 8}
    inputs = str(cache_dir), str(teacher_dir)
    exact, _ = report_fidelity(FidelityConfig(*inputs, **settings))
    rough, about = report_fidelity(
        FidelityConfig(*inputs, compute_dtype="mixed_bfloat16", **settings)
    )
    assert about["compute_dtype"] == "mixed_bfloat16"
    assert rough.kl_divergence["1"].mean > 10 * exact.kl_divergence["1"].mean


def test_another_teacher_requires_any_teacher(
    cache_dir, teacher_dir, other_teacher_dir, capsys
) -> None:
    assert _run(cache_dir, other_teacher_dir) == 1
    error = _error(capsys)
    assert error.startswith("error: --teacher: ") and "--any_teacher" in error
    assert all(find_model(path).sha256() in error for path in (teacher_dir, other_teacher_dir))
    assert _run(cache_dir, other_teacher_dir, "--any_teacher") == 0


def test_merged_cache_requires_any_teacher(merged_dir, teacher_dir, capsys) -> None:
    assert _run(merged_dir, teacher_dir) == 1
    assert f"--input_dir: {merged_dir}: merged from 2 caches" in _error(capsys)
    report, about = report_fidelity(
        FidelityConfig(str(merged_dir), str(teacher_dir), sample=12, any_teacher=True)
    )
    assert about["cache_compute_dtype"] == "float32"
    assert set(report.kl_divergence) == {"1"}
    # This teacher has a weight of 0.75, so that KL(p ‖ q) is at most −log 0.75.
    assert 0.001 < report.kl_divergence["1"].max < -math.log(0.75) + 1e-3


def test_sampled_cache_is_refused(examples_dir, teacher_dir, tmp_path) -> None:
    sampled_cache = make_cache(
        tmp_path / "cache", examples_dir, teacher_dir, truncation="sampled", temperatures=(1.0,)
    )
    with pytest.raises(InputError) as refused:
        report_fidelity(FidelityConfig(str(sampled_cache), str(teacher_dir)))
    assert refused.value.expected == "a cache of the top-k"


def test_masked_examples_are_refused_as_a_cache(examples_dir, teacher_dir, capsys) -> None:
    assert _run(examples_dir, teacher_dir) == 1
    error = f"--input_dir: {examples_dir}: expected a teacher_cache, received masked_examples"
    assert error in _error(capsys)


def test_errors_about_invalid_settings_name_the_flag(
    cache_dir, teacher_dir, vocab_file, tmp_path, capsys
) -> None:
    assert tool.main(["fidelity_report", f"--input_dir={cache_dir}"]) == 1
    assert _error(capsys) == "error: missing: --teacher (see --help)"
    path = tmp_path / "report.json"
    path.write_text("mine")
    assert _run(cache_dir, teacher_dir, f"--output={path}") == 1
    assert _error(capsys).startswith(f"error: --output: {path}: expected a new file")
    assert path.read_text() == "mine"
    short = save_tiny_bert(tmp_path / "short", vocab_file, seed=1, max_position_embeddings=40)
    assert _run(cache_dir, short, "--any_teacher") == 1
    assert _error(capsys).startswith("error: --teacher: must be a model of at least 48 positions")
