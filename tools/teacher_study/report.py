"""The results of a study, as JSON values and as Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.base import hub_id
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from tools import spreads
from tools.finetuning import short_runs
from tools.measurement import describe_machine, machine_line
from tools.recipe_comparison import table
from tools.recipe_comparison.runs import LIKE, Trial
from tools.recipe_comparison.table import Score, markdown_table
from tools.teacher_study.result_files import (
    ACCURACY,
    last_evaluation,
    read_constant_score,
    read_inference,
)
from tools.teacher_study.study import TEACHER, Study

BASELINE, DISTILLED, CONTINUED = "baseline", "distilled", "continued"
_TEACHER_ACCURACY = "teacher_accuracy"


def read_report(study: Study) -> dict[str, Any]:
    """Collects the results of a finished study, as JSON values.

    Returns:
        an object with `settings`, `teacher`, `machine`, `minutes`, `sizes` and these keys.

        - `head`: the steps and the accuracy of the teacher's new head; None if the teacher already
          had a head.
        - `models`: the teacher first. Each has its `role`, parameters, `scores` and `share_kept`:
          the mean ratio of its scores to the teacher's, over tasks on which the teacher beats
          chance.
        - `chance`: for each task its best constant score, the limit above which a score is better
          than chance, and whether the teacher's is.
        - `gains`: the differences to the baseline of the same start.
        - `speed`: the speeds of the teacher and the student.
        - `sentences`: one for each distilled recipe, the best first.
    """
    columns = table.score_columns(study)
    models = [_teacher(study), *_students(study, columns)]
    chance = _chance(study, models[0])
    _add_shares(models, [task for task, row in chance.items() if row["teacher_above"]])
    speed = _speed(study)
    return {
        "settings": {**study.config.run_config(), "seeds": list(study.config.seeds)},
        "teacher": hub_id.display_name(study.config.teacher.resolve()),
        "machine": describe_machine(),
        "minutes": study.durations.total / 60.0,
        "sizes": _sizes(study),
        "head": _head(study),
        "models": models,
        "chance": chance,
        "gains": list(_gains(models, columns)),
        "speed": speed,
        "sentences": list(_sentences(models, speed)),
    }


def _sizes(study: Study) -> dict[str, Any]:
    tasks = {
        short_runs.task_name(task): study.task_changes(task).get("max_train_examples")
        or short_runs.task_settings(task).max_train_examples
        for task in study.config.tasks
    }
    return {"num_train_steps": study.common_steps, "task_examples": tasks}


def _head(study: Study) -> dict[str, Any] | None:
    if study.has_head:
        return None
    accuracy = last_evaluation(study.teacher)[ACCURACY]
    return {"num_train_steps": study.head_steps, ACCURACY: accuracy}


def _teacher(study: Study) -> dict[str, Any]:
    config = model_directory.find_model(study.teacher).config
    reports = study.scores_file(study.trials[0]).read_json()
    values = [
        {f"{LIKE}/{ACCURACY}": reports[LIKE][_TEACHER_ACCURACY]}
        | table.task_values(study, f"{TEACHER}_seed{seed}")
        for seed in study.config.seeds
    ]
    scores = {name: spreads.spread([scores[name] for scores in values]) for name in values[0]}
    # The teacher is evaluated once, so this score has no deviation.
    scores[f"{LIKE}/{ACCURACY}"]["std"] = None
    return {
        "key": TEACHER,
        "title": f"teacher, {config.num_hidden_layers} layers",
        "role": TEACHER,
        "baseline": None,
        "parameters": count_parameters(config),
        "scores": scores,
    }


def _students(study: Study, columns: Sequence[Score]) -> Iterator[dict[str, Any]]:
    kinds: dict[str, list[Trial]] = {}
    for trial in study.trials:
        kinds.setdefault(trial.kind, []).append(trial)
    baseline = study.baseline
    for key, trials in kinds.items():
        first = trials[0]
        is_baseline = first.variant == baseline
        same_start = Trial(baseline, first.seed, first.base)
        role = CONTINUED if first.base is not None else BASELINE if is_baseline else DISTILLED
        values = [table.trial_values(study, trial) for trial in trials]
        config = model_directory.find_model(study.student(first)).config
        yield {
            "key": key,
            "title": first.title.rpartition(", seed ")[0],
            "role": role,
            "baseline": None if is_baseline else same_start.kind,
            "settings": first.variant.arguments(),
            "source": first.variant.source,
            "num_train_steps": study.num_train_steps(first),
            "step_time_ratio": study.step_time_ratio(first.variant),
            "parameters": count_parameters(config),
            "scores": {
                column.key: spreads.spread([scores[column.key] for scores in values])
                for column in columns
            },
        }


def _chance(study: Study, teacher: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {}
    for task in study.config.tasks:
        directory = study.task_directory(f"{TEACHER}_seed{study.config.seeds[0]}", task)
        constant, name = read_constant_score(directory), short_runs.task_name(task)
        rows[name] = {
            "constant_score": constant.constant_score,
            "chance_limit": constant.chance_limit,
            "teacher_above": teacher["scores"][name]["mean"] > constant.chance_limit,
        }
    return rows


def _add_shares(models: Sequence[dict[str, Any]], tasks: Sequence[str]) -> None:
    """Adds `share_kept` to models, a mean over tasks on which the teacher is above chance."""
    for model in models:
        shares = [
            model["scores"][task]["mean"] / models[0]["scores"][task]["mean"] for task in tasks
        ]
        model["share_kept"] = statistics.fmean(shares) if shares else None


def _gains(
    models: Sequence[Mapping[str, Any]], columns: Sequence[Score]
) -> Iterator[dict[str, Any]]:
    by_key = {model["key"]: model for model in models}
    for model in models:
        if model["baseline"] is not None:
            theirs = by_key[model["baseline"]]
            scores = {
                column.key: table.difference(model["scores"], theirs["scores"], column)
                for column in columns
            }
            yield {"model": model["key"], "baseline": model["baseline"], "scores": scores}


def _speed(study: Study) -> dict[str, Any]:
    """Returns the teacher's and the student's speed, and their ratio, for each computation."""
    inference = read_inference(study.inference_file)
    pairs = zip(inference.rows[::2], inference.rows[1::2], strict=True)
    return {
        "seq_length": inference.seq_length,
        "batch_size": inference.batch_size,
        "rows": [
            {
                "computed": f"{student.computation}, {student.device}",
                "teacher_megabytes": teacher.megabytes,
                "student_megabytes": student.megabytes,
                "teacher_latency": teacher.latency.median,
                "student_latency": student.latency.median,
                "latency": list(student.latency.times_better),
                "teacher_throughput": teacher.throughput.median,
                "student_throughput": student.throughput.median,
                "throughput": list(student.throughput.times_better),
            }
            for teacher, student in pairs
        ],
    }


def _sentences(models: Sequence[Mapping[str, Any]], speed: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each distilled recipe, the best first.

    Its form is "x% smaller, y% faster, z% of the teacher's score kept".
    """
    teacher, faster = models[0], 100.0 * (speed["rows"][0]["throughput"][0] - 1.0)
    (baseline,) = (model for model in models if model["role"] == BASELINE)
    distilled = [model for model in models if model["role"] == DISTILLED]
    for model in sorted(distilled, key=lambda model: -(model["share_kept"] or 0.0)):
        smaller = 100.0 * (1.0 - model["parameters"] / teacher["parameters"])
        result = "the teacher is better than chance on no task"
        if model["share_kept"] is not None:
            share, of_baseline = _percent(model["share_kept"]), _percent(baseline["share_kept"])
            result = f"{share} of the teacher's score kept (baseline student: {of_baseline})"
        yield f"{model['title']}: {smaller:.0f}% smaller, {faster:.0f}% faster, {result}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100.0 * share:.1f}%"


def markdown(report: Mapping[str, Any], columns: Sequence[Score]) -> str:
    """Returns a report as Markdown."""
    titles = {model["key"]: model["title"] for model in report["models"]}
    lines = [f"# Study of {report['teacher']}", "", *_describe(report), "", "## Students", ""]
    names = [column.title for column in columns]
    rows = [
        (
            model["title"],
            f"{model['parameters'] / 1e6:.2f} M",
            *_steps(model),
            *(
                column.cell(model["scores"][column.key]) if column.key in model["scores"] else ""
                for column in columns
            ),
            _percent(model["share_kept"]),
        )
        for model in report["models"]
    ]
    lines += markdown_table(("", "parameters", "steps", "step time", *names, "kept"), rows)
    lines += ["", "## Difference to the baseline student (same start and steps, labels only)", ""]
    effects = [
        (titles[gain["model"]], *(column.effect(gain["scores"][column.key]) for column in columns))
        for gain in report["gains"]
    ]
    lines += markdown_table(("", *names), effects)
    lines += ["", "~: within the standard deviation of the seeds.", ""]
    lines += ["## Where distillation does not help", ""]
    lines += [*_no_help(report, titles), "", "## Size and speed", "", *_speed_lines(report), ""]
    return "\n".join(lines)


def _steps(model: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the steps of a student and their time as a multiple of the baseline's."""
    if model["role"] == TEACHER:
        return "", ""
    return f"{model['num_train_steps']:,}", f"{model['step_time_ratio']:.2f}"


def _describe(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the sentences, then the settings behind them."""
    for sentence in report["sentences"]:
        yield f"- {sentence}"
    yield ""
    settings, sizes, head = report["settings"], report["sizes"], report["head"]
    yield (
        f"{sizes['num_train_steps']:,} steps of {settings['train_batch_size']} inputs for each "
        "student; the baseline student is continued for half of them. Mean and standard deviation "
        f"of {len(settings['seeds'])} seeds. Shares in percent, KL in nats at temperature 1. Kept: "
        "the mean share of the teacher's score, over the tasks on which it is better than chance. "
        "Faster: throughput."
    )
    for task, row in report["chance"].items():
        if not row["teacher_above"]:
            teacher = report["models"][0]["scores"][task]["mean"]
            yield (
                f"{task} is excluded: the teacher scores {100 * teacher:.1f}, but a score must "
                f"exceed {100 * row['chance_limit']:.1f} to be better than chance. The best "
                f"constant prediction scores {100 * row['constant_score']:.1f}."
            )
    examples = sizes["task_examples"].items()
    limits = ", ".join(
        f"{task} {max_examples:,}" for task, max_examples in examples if max_examples is not None
    )
    if limits:
        yield f"Maximum number of training examples: {limits}."
    if head is not None:
        accuracy = f"{100 * head[ACCURACY]:.1f}%"
        yield (
            f"The teacher had no masked-LM head. One was trained for {head['num_train_steps']:,} "
            f"steps and predicts {accuracy} of the masked tokens."
        )
    if (budget := settings.get("budget")) is not None:
        yield f"{report['minutes']:.0f} of {budget / 60:.0f} minutes."
    else:
        yield f"{report['minutes']:.0f} minutes."


def _no_help(report: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[str]:
    """Yields, for each distilled student, the tasks on which it is not better.

    Tasks on which the teacher is not better than chance are left out.
    """
    tasks = [task for task, row in report["chance"].items() if row["teacher_above"]]
    for gain in report["gains"]:
        unhelped = [
            f"{task} ({100 * effect['difference']:+.1f}, {effect['verdict']})"
            for task in tasks
            if (effect := gain["scores"][task])["verdict"] != spreads.BETTER
        ]
        where = ", ".join(unhelped) or "it helps on every task that counts"
        yield f"- {titles[gain['model']]}: {where}."


def _speed_lines(report: Mapping[str, Any]) -> Iterator[str]:
    speed = report["speed"]
    rows = [
        (
            row["computed"],
            f"{row['teacher_megabytes']:.1f} → {row['student_megabytes']:.1f}",
            f"{1e3 * row['teacher_latency']:.1f} → {1e3 * row['student_latency']:.1f}",
            _times(row["latency"]),
            f"{row['teacher_throughput']:.1f} → {row['student_throughput']:.1f}",
            _times(row["throughput"]),
        )
        for row in speed["rows"]
    ]
    titles = ("", "MB", "latency, ms", "times faster", "inputs/s", "times faster")
    yield from markdown_table(titles, rows)
    yield ""
    yield (
        f"Teacher → student, inputs of {speed['seq_length']} tokens, one at a time and "
        f"{speed['batch_size']} at a time. {machine_line(report['machine'])}."
    )


def _times(times_better: Sequence[float]) -> str:
    median, low, high = times_better
    return f"{median:.2f} ({low:.2f}-{high:.2f})"
