"""The results of a comparison of recipes, as JSON values and as Markdown."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools import spreads
from tools.finetuning import short_runs
from tools.measurement import describe_machine, machine_line
from tools.recipe_comparison.comparison import RecipeComparison
from tools.recipe_comparison.runs import LIKE, OTHER, StudentRuns, Trial
from tools.recipe_comparison.variants import LABELS, RecipeVariant

_TEXTS = {LIKE: "text like the training text", OTHER: "other text"}


@dataclasses.dataclass(frozen=True)
class Score:
    """A column of the table.

    Attributes:
        key: the key of the score in the report.
        title: the title of the column.
        factor: factor of the displayed values; 100 for shares.
        less_is_better: whether a smaller value is better.
    """

    key: str
    title: str
    factor: float = 100.0
    less_is_better: bool = False

    def cell(self, score: Mapping[str, Any]) -> str:
        """Returns the mean and the standard deviation over the seeds as text."""
        digits = 1 if self.factor == 100.0 else 3
        deviation = "" if score["std"] is None else f" ± {self.factor * score['std']:.{digits}f}"
        return f"{self.factor * score['mean']:.{digits}f}{deviation}"

    def effect(self, score: Mapping[str, Any]) -> str:
        """Returns a difference as text, with a mark if it is within the spread."""
        digits = 1 if self.factor == 100.0 else 3
        mark = " ~" if score["verdict"] == spreads.WITHIN_SPREAD else ""
        return f"{self.factor * score['difference']:+.{digits}f}{mark}"


def score_columns(runs: StudentRuns) -> list[Score]:
    """Returns the columns of students that were evaluated and fine-tuned."""
    columns = []
    for text in runs.texts:
        columns += [
            Score(f"{text}/masked_lm_accuracy", f"accuracy, {text}"),
            Score(f"{text}/teacher_agreement", f"agreement, {text}"),
            Score(f"{text}/kl_divergence", f"KL, {text}", factor=1.0, less_is_better=True),
        ]
    names = map(short_runs.task_name, runs.config.tasks)
    return [*columns, *(Score(name, name) for name in names)]


def read_report(comparison: RecipeComparison) -> dict[str, Any]:
    """Collects the results of a finished comparison, as JSON values.

    Returns:
        `settings`; `machine`; `teacher`, its masked-LM accuracy on each text; `mixes`, each with
        its source, losses, steps, step time, training examples, cache bytes and `scores`;
        `labels_effect`, the difference that `masked_lm` makes to each recipe.
    """
    columns = score_columns(comparison)
    rows = [_row(comparison, variant, columns) for variant in comparison.variants]
    config = comparison.config
    reports = comparison.scores_file(comparison.trials[0]).read_json()
    return {
        "settings": {**config.run_config(), "seeds": list(config.seeds)},
        "machine": describe_machine(),
        "teacher": {text: reports[text]["teacher_accuracy"] for text in comparison.texts},
        "mixes": rows,
        "labels_effect": list(_labels_effect(rows, columns)),
    }


def _row(
    comparison: RecipeComparison, variant: RecipeVariant, columns: Sequence[Score]
) -> dict[str, Any]:
    time = comparison.step_time_file(variant).read_json()
    trials = [Trial(variant, seed) for seed in comparison.config.seeds]
    values = [trial_values(comparison, trial) for trial in trials]
    return {
        "recipe": variant.recipe,
        "source": variant.source,
        "with_labels": variant.with_labels,
        "settings": variant.arguments(),
        "step_seconds": time["seconds"],
        "step_time_ratio": time["ratio"],
        "num_train_steps": time["num_train_steps"],
        **_data(comparison, variant),
        "scores": {
            column.key: spreads.spread([cell_scores[column.key] for cell_scores in values])
            for column in columns
        },
    }


def trial_values(runs: StudentRuns, trial: Trial) -> dict[str, float]:
    """Returns a student's scores, by the keys of `score_columns`."""
    reports = runs.scores_file(trial).read_json()
    values = {
        f"{text}/{name}": value for text in runs.texts for name, value in reports[text].items()
    }
    return values | task_values(runs, trial.key)


def task_values(runs: StudentRuns, key: str) -> dict[str, float]:
    """Returns the task scores of the model with a key."""
    return {
        short_runs.task_name(task): short_runs.read_score(
            runs.task_directory(key, task) / "summary.json"
        )
        for task in runs.config.tasks
    }


def _data(comparison: RecipeComparison, variant: RecipeVariant) -> dict[str, int | None]:
    """Returns the number of training examples of a variant, and the bytes of its cache."""
    size = None
    if variant.cache is not None:
        manifest = manifests.load(comparison.training_cache(variant.cache))
        size = sum(shard.bytes for shard in manifest.splits[TRAIN])
    else:
        name = "examples" if variant.source == LABELS else "windows"
        manifest = manifests.load(comparison.work / name)
    return {"train_examples": manifest.num_examples(TRAIN), "cache_bytes": size}


def _labels_effect(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[Score]
) -> Iterator[dict[str, Any]]:
    """Yields the effect of `masked_lm` on the scores, for each recipe and source."""
    pairs: dict[tuple[str, str], dict[bool, Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["recipe"], row["source"]), {})[row["with_labels"]] = row["scores"]
    for (recipe, source), pair in pairs.items():
        if len(pair) == 2:
            scores = {column.key: difference(pair[True], pair[False], column) for column in columns}
            yield {"recipe": recipe, "source": source, "scores": scores}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], column: Score) -> dict[str, Any]:
    """Returns the difference of two models' scores, and a verdict on which is better."""
    ours, theirs = ours[column.key], theirs[column.key]
    if not column.less_is_better:
        return spreads.difference(ours, theirs)
    reversed_difference = spreads.difference(theirs, ours)
    return {**reversed_difference, "difference": -reversed_difference["difference"]}


def markdown(report: Mapping[str, Any], columns: Sequence[Score]) -> str:
    """Returns a report as Markdown."""
    settings, teacher = report["settings"], report["teacher"]
    time = f"{settings['train_seconds']:g} s"
    if steps := settings.get("baseline_steps"):
        time = f"the time of {steps:,} steps of masked_lm alone"
    lines = [
        "# Comparison of recipes",
        "",
        f"Training time of each student: {time}. Its number of steps is computed from its step "
        "time, which was measured alternately with that of masked_lm alone; batches of "
        f"{settings['train_batch_size']}. Mean and standard deviation of {len(settings['seeds'])} "
        "seeds. Shares in percent, KL in nats at temperature 1.",
        "",
    ]
    for text, accuracy in teacher.items():
        lines.append(f"Accuracy of the teacher on {_TEXTS[text]}: {100 * accuracy:.1f}.")
    titles = ("recipe", "targets", "masked_lm", "steps", "step time", "examples", "cache MB")
    rows = [
        (*_describe(row), *(column.cell(row["scores"][column.key]) for column in columns))
        for row in report["mixes"]
    ]
    lines += ["", *markdown_table((*titles, *(column.title for column in columns)), rows)]
    effects = [
        (
            row["recipe"],
            row["source"],
            *(column.effect(row["scores"][column.key]) for column in columns),
        )
        for row in report["labels_effect"]
    ]
    if effects:
        titles = ("recipe", "targets", *(column.title for column in columns))
        lines += ["", "## Effect of masked_lm in the mix", "", *markdown_table(titles, effects)]
        lines += ["", "~: within the standard deviation of the seeds."]
    lines += ["", f"{machine_line(report['machine'])}.", ""]
    return "\n".join(lines)


def _describe(row: Mapping[str, Any]) -> tuple[str, ...]:
    size = row["cache_bytes"]
    return (
        row["recipe"],
        row["source"],
        "yes" if row["with_labels"] else "no",
        f"{row['num_train_steps']:,}",
        f"{row['step_time_ratio']:.2f}",
        f"{row['train_examples']:,}",
        "" if size is None else f"{size / 1e6:.1f}",
    )


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
