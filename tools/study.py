"""Scores a teacher's distilled students on tasks, beside students of the labels alone.

offline_distill study --teacher=MODEL --input_dir=TEXT --work=DIR --budget=2h \\
    --tasks=sst2=DATA,mrpc=DATA

A teacher without a masked-LM head gets one, trained on the text. Students of half of its layers
are trained from the same start for the same steps: one by the labels alone, the baseline, and one
by each of --recipes. The baseline also stands for a base model that is continued, with the
teacher's targets or by labels alone. All are fine-tuned on the tasks, as the teacher is. Each is
made with two seeds at least.

With --budget the first steps are measured, and steps and examples are chosen so that the whole
fits. For a short budget take few --recipes and a small --max_seq_length and --max_eval_steps.
Re-running the command resumes. Writes study.md and study.json, with the sentence
"x% smaller, y% faster, z% kept".
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.commands import flags, running
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
from tools.commands import make_steps
from tools.compare_recipes import read_recipe
from tools.teacher_study.settings import StudyConfig

if TYPE_CHECKING:
    from tools.teacher_study.study import Study


def find_study(config: StudyConfig) -> "Study":
    """Finds the teacher and the recipes.

    Raises:
        InputError: the teacher or a recipe is invalid.
    """
    from tools.recipe_comparison import mixes
    from tools.teacher_study.study import Study

    mixes.expect_codec(config.cache, "cache")
    source = model_directory.find_model(config.teacher)
    if not source.is_bare:
        source.expect_head()
    teacher = source.config
    with naming_setting("teacher"):
        from_teacher.expect_tied(teacher)
    layers = config.student_layers or max(1, teacher.num_hidden_layers // 2)
    from_teacher.choose_layers(teacher, layers, None)
    baseline = mixes.Recipe(mixes.MASKED_LM, None, {mixes.MASKED_LM: 1.0})
    made = mixes.make_mixes(
        [baseline, *map(read_recipe, config.recipes)],
        shapes=mixes.Shapes(teacher.num_hidden_layers, layers, (teacher.hidden_size,)),
        cache=config.cache,
    )
    for mix in made[1:]:
        if mix.source == mixes.LABELS:
            expected = "recipes with a teacher, as labels alone are the baseline"
            raise InputError(Setting("recipes"), expected, mix.title)
    return Study(config, made, layers, has_head=not source.is_bare)


def _study(values: absl_flags.FlagValues) -> None:
    begun = time.monotonic()
    config = flags.read_config(values, StudyConfig)
    running.import_quietly("keras", "tensorflow")

    from tools.recipe_comparison import table
    from tools.teacher_study import report as reports

    study = find_study(config)
    study.claim()
    with contextlib.closing(study):
        make_steps(list(study.steps()), begun)
    report = reports.read_report(study)
    text = reports.markdown(report, table.score_columns(study))
    (config.work / "study.json").write_json(report)
    (config.work / "study.md").write_whole(text.encode("utf-8"))
    print(f"\n{text}")
    print(f"{report['minutes']:.1f} minutes; study.md and study.json are in {config.work}")
    print(report["sentences"][0])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(StudyConfig), _study, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
