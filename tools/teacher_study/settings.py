"""The settings of `study`."""

import dataclasses
import re
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.settings import parse_words, setting
from tools.finetuning import short_runs
from tools.recipe_comparison.settings import StudentRunsConfig

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
# The steps of a student if neither the settings nor a budget decide them.
DEFAULT_STEPS = 600


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration.

    Example: `1h30m` is 5400.

    Raises:
        InputError: the text is not a duration, or the duration is 0.
    """
    match = _DURATION.fullmatch(text.strip())
    numbers = [float(number or 0) for number in match.groups()] if match else [0.0]
    seconds = sum(number * unit for number, unit in zip(numbers, (3600.0, 60.0, 1.0), strict=False))
    if seconds <= 0.0:
        raise InputError(None, "a duration such as 30m, 1h30m or 90s", f"{text!r}")
    return seconds


@dataclasses.dataclass(frozen=True)
class StudyConfig(StudentRunsConfig):
    """The settings of this tool; its flags are generated from them."""

    recipes: tuple[str, ...] = setting(
        ("roberta_wwm", "distilbert", "minirbt"),
        "Recipes of the distilled students, separated by commas, in the form of compare_recipes. "
        "The first also continues the baseline student.",
        parse=parse_words,
        decides_output=False,
    )
    num_train_steps: int | None = setting(
        None,
        f"Steps of each student; by default {DEFAULT_STEPS}, or the number that fits in `budget`. "
        "The baseline student is continued for half of the steps.",
        low=2,
    )
    head_steps: int = setting(
        1_000,
        "Training steps of a new head for a teacher without one; fewer if they would take more "
        "than a tenth of `budget`.",
        low=1,
    )
    num_shards: int = setting(
        128, "Number of training shards of masked examples; only the needed ones are used.", low=1
    )
    budget: float | None = setting(
        None,
        "Time for the whole study, for example 30m or 4h. The first steps are measured, and the "
        "largest sizes that fit are chosen. No recipe, task or seed can be added later.",
        parse=parse_duration,
        low=1.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "recipes"):
            if not getattr(self, name):
                raise InputError(Setting(name), "a list of at least one", "none")

    def run_config(self) -> dict[str, Any]:
        """Returns the settings that decide all students, as JSON values.

        Without a budget recipes, tasks and seeds may be added later.
        """
        run_config = {
            "kind": "study",
            **self.output_settings(),
            "teacher": str(self.teacher.resolve()),
        }
        if self.budget is not None:
            tasks = [short_runs.task_name(task) for task in self.tasks]
            run_config |= {"recipes": list(self.recipes), "tasks": tasks, "seeds": list(self.seeds)}
        return run_config
