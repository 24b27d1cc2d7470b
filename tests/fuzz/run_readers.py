"""Readers of the files of runs and reports that are fuzzed."""

import functools
import json
import pathlib
from typing import Any

from pipeline.distill.run_log import RunLog
from pipeline.models.formats import model_directory
from tests.fuzz.checking import Reader
from tests.fuzz.model_readers import write_model
from tests.fuzz.mutation import mutate_json, mutate_json_lines


def _write_text(folder: pathlib.Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")


_EVALUATION = {
    "step": 40,
    "split": "eval",
    "loss": 5.0,
    "masked_lm": 4.2,
    "masked_lm_perplexity": 120.0,
    "masked_lm_accuracy": 0.31,
    "teacher_agreement": 0.6,
    "teacher_accuracy": 0.45,
    "kl_divergence": 0.2,
    "calibration_error": 0.02,
    "examples_per_second": 99.0,
}
_LINES = [
    *({"step": n, "split": "train", "loss": 5.0 - n / 99, "learning_rate": 1e-3} for n in (20, 40)),
    {**_EVALUATION, "step": 20, "masked_lm_accuracy": 0.2},
    _EVALUATION,
]
_REQUEST = {
    "kind": "student",
    "cache": "a" * 64,
    "learning_rate": 1e-3,
    "losses": {"masked_lm": 1.0},
    "student": {"config": {"num_hidden_layers": 2, "hidden_size": 8}, "layer_map": [0, 3]},
}
_SPREAD = {"mean": 0.8, "std": 0.01, "values": [0.79, 0.81]}
_FIGURES = {"median": 0.2, "smallest": 0.1, "largest": 0.3}
_SUMMARY = {
    "task": "tnews",
    "split": "dev",
    "model": "students/one",
    "main_metric": "accuracy",
    "best_learning_rate": 1e-4,
    "rates": [{"learning_rate": 1e-4, "num_seeds": 2, "metrics": {"accuracy": _SPREAD}}],
}
_REPORTS: dict[str, Any] = {
    "plan": {
        "plans": [
            {
                "logit_encoding": "compact",
                "truncation_factor": k,
                "position_bytes": 3.0 * k,
                "temperatures": {"1": {"mass_kept": 0.9, "kl": {"mean": 0.1 / k}}},
            }
            for k in (8, 16)
        ]
    },
    "fidelity": {
        "logit_encoding": "compact",
        "truncation_factor": 16,
        "bytes_per_position": {"topk_ids": 32, "topk_logits": 16.0},
        "mass_kept": 0.9,
        "kl_divergence": {"1": {"mean": 0.1}, "2": {"mean": 0.2}},
    },
    "comparison": [
        {
            "cache": f"caches/{name}",
            "bytes_per_position": 40.0,
            "scores": {"1": {"teacher_agreement": 0.5}, "2": {"teacher_agreement": 0.6}},
        }
        for name in ("a", "b")
    ],
    "inference": {
        "rows": [
            {
                "model": "run",
                "computation": "float32",
                "device": "CPU",
                "parameters": 9,
                "megabytes": 1.0,
                "latency": _FIGURES,
                "throughput": _FIGURES,
            }
        ]
    },
    "finetune": _SUMMARY,
}


def _write_run(folder: pathlib.Path) -> None:
    for name in ("run", "other"):
        (folder / name).mkdir()
        write_model(folder / name)
        lines = "".join(json.dumps(line) + "\n" for line in _LINES)
        _write_text(folder / name, "metrics.jsonl", lines)
        _write_text(folder / name, "request.json", json.dumps(_REQUEST))
    for name, value in _REPORTS.items():
        _write_text(folder, f"{name}.json", json.dumps(value))


def _read_run(folder: pathlib.Path) -> object:
    from tools.report.__main__ import ReportConfig, make_report

    return make_report(ReportConfig(runs=(folder / "run", folder / "other")))


def _read_report(folder: pathlib.Path, name: str) -> object:
    from tools.report.__main__ import ReportConfig, make_report

    path = folder / f"{name}.json"
    value = (path,) if name in ("fidelity", "finetune") else path
    return make_report(ReportConfig(**{name: value}))


def _read_log(folder: pathlib.Path) -> object:
    log = RunLog(folder / "run", start=30)
    log.close()
    return (folder / "run" / "metrics.jsonl").read_bytes()


def _read_card(folder: pathlib.Path) -> object:
    from tools.exports import model_card

    return model_card.find_origin(folder / "run", None)


def _read_study(folder: pathlib.Path) -> object:
    from tools.teacher_study import result_files

    return result_files.last_evaluation(folder / "run")


def _read_study_summary(folder: pathlib.Path) -> object:
    from tools.finetuning import short_runs

    return short_runs.read_score(folder / "finetune.json")


def _write_finetuned(folder: pathlib.Path) -> None:
    (folder / "model").mkdir()
    write_model(folder / "model")
    request = {
        "kind": "finetuned",
        "task": {"name": "x", "kind": "classification", "labels": ["a", "b"], "text_fields": ["t"]},
        "eval_split": "dev",
        "model": "0" * 64,
        "do_train": True,
        "train_batch_size": 8,
        "learning_rate": 1e-4,
        "warmup_proportion": 0.1,
        "num_train_epochs": 2.0,
        "max_seq_length": 16,
        "random_seed": 1,
        "compute_dtype": "float32",
        "distill_weight": 0.5,
        "distill_temperature": 2.0,
        "teacher": None,
    }
    counts = {"num_train_examples": 9, "num_train_steps": 3}
    report = {"metrics": {"accuracy": 0.5}, "counts": counts, "predictions": ["x.tsv"]}
    _write_text(folder, "request.json", json.dumps(request))
    _write_text(folder, "metrics.json", json.dumps(report))


def _read_finetuned(folder: pathlib.Path) -> object:
    from tools.exports import model_task
    from tools.finetuning import training

    source = model_directory.find_model(folder / "model")
    result = training._read_result(folder)
    for path in result.predictions:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RuntimeError(f"outside: {path}")
    return model_task.find_task(source)


def readers_of_runs() -> list[Reader]:
    """Returns all readers of runs."""
    metrics, request = "run/metrics.jsonl", "run/request.json"
    run = ("--runs", "request.json", "config.json", "metrics.jsonl")
    return [
        Reader("report, metrics", metrics, mutate_json_lines, _read_run, _write_run, run),
        Reader("report, request", request, mutate_json, _read_run, _write_run, run),
        Reader("report, config", "run/config.json", mutate_json, _read_run, _write_run, run),
        *(
            Reader(
                f"report, {name}",
                f"{name}.json",
                mutate_json,
                functools.partial(_read_report, name=name),
                _write_run,
            )
            for name in _REPORTS
        ),
        Reader("run log", metrics, mutate_json_lines, _read_log, _write_run),
        Reader("model card", metrics, mutate_json_lines, _read_card, _write_run),
        Reader("model card, request", request, mutate_json, _read_card, _write_run, run),
        Reader("study, metrics", metrics, mutate_json_lines, _read_study, _write_run, run),
        Reader("study, summary", "finetune.json", mutate_json, _read_study_summary, _write_run),
        *(
            Reader(
                f"fine-tuned, {name}",
                f"{name}.json",
                mutate_json,
                _read_finetuned,
                _write_finetuned,
                run,
            )
            for name in ("request", "metrics")
        ),
    ]
