"""Compares a teacher's distilled students on tasks with students trained on labels only.

offline_distill study --teacher=MODEL --input_dir=TEXT --work=DIR --budget=2h \\
    --tasks=sst2=DATA,mrpc=DATA

If the teacher has no masked-LM head, one is trained on the text. Students with half of the
teacher's layers start from the same weights and train for the same number of steps. The baseline
student learns from labels only; one more student is trained with each of --recipes. The baseline
is also trained further, with teacher targets or with labels only. All
students and the teacher are fine-tuned on the tasks, with at least two seeds each.

With --budget, the first steps are measured, and the numbers of steps and examples are chosen to
fit. For a short budget, use few --recipes and a small --max_seq_length and --max_eval_steps.
Re-run the command to resume. Writes study.md and study.json, with the sentence
"x% smaller, y% faster, z% of the teacher's score kept".
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
from tools.commands import run_steps
from tools.compare_recipes import read_recipe
from tools.teacher_study.settings import StudyConfig

if TYPE_CHECKING:
    from tools.teacher_study.study import Study


def find_study(config: StudyConfig) -> "Study":
    """Returns the study of the teacher and the recipes in the settings.

    Raises:
        InputError: the teacher or a recipe is invalid.
    """
    from tools.recipe_comparison import variants
    from tools.teacher_study.study import Study

    variants.expect_codec(config.cache, "cache")
    source = model_directory.find_model(config.teacher)
    if not source.is_bare:
        source.expect_head()
    teacher = source.config
    with naming_setting("teacher"):
        from_teacher.expect_tied(teacher)
    layers = config.student_layers or max(1, teacher.num_hidden_layers // 2)
    from_teacher.choose_layers(teacher, layers, None)
    baseline = variants.Recipe(variants.MASKED_LM, None, {variants.MASKED_LM: 1.0})
    study_variants = variants.make_variants(
        [baseline, *map(read_recipe, config.recipes)],
        shapes=variants.Shapes(teacher.num_hidden_layers, layers, (teacher.hidden_size,)),
        cache=config.cache,
    )
    for variant in study_variants[1:]:
        if variant.source == variants.LABELS:
            expected = "recipes with teacher targets, as the baseline student uses labels only"
            raise InputError(Setting("recipes"), expected, variant.title)
    return Study(config, study_variants, layers, has_head=not source.is_bare)


def _study(values: absl_flags.FlagValues) -> None:
    start_time = time.monotonic()
    config = flags.read_config(values, StudyConfig)
    running.import_quietly("keras", "tensorflow")

    from tools.recipe_comparison import table
    from tools.teacher_study import report as reports

    study = find_study(config)
    study.reserve()
    with contextlib.closing(study):
        run_steps(list(study.steps()), start_time)
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
