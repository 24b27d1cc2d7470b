"""Compares recipes with the same student, text and training time on text and tasks.

offline_distill compare_recipes --teacher=TEACHER --input_dir=TEXT --other_text=OTHER --work=DIR \\
    --recipes=masked_lm,roberta_wwm,distilbert --train_seconds=600 \\
    --tasks=chnsenticorp=DATA,ocnli=DATA

Trains each recipe with and without masked_lm in its mix of losses, with at least two seeds.
With --masked_lm_weight=0, recipes are trained only as they are written.
A recipe decides the losses and their settings. The student, batch size, learning rate and
training time are the same for all. The number of steps is computed from the step time, which is
measured alternately with that of a masked_lm run. All caches are truncated to the same size in
bytes. Re-run the command to resume or to add recipes, seeds and tasks. Writes comparison.md and
comparison.json.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from data_specs import recipes as published
from pipeline import run_distill
from pipeline.base.errors import InputError, Setting, naming_setting, suggest
from pipeline.base.location import Location
from pipeline.commands import flags, running
from pipeline.distill.losses import LOSSES
from pipeline.distill.losses.weights import parse_losses
from pipeline.distill.settings import DistillConfig
from pipeline.models.formats import model_directory
from tools.commands import run_steps
from tools.recipe_comparison.settings import CompareRecipesConfig

if TYPE_CHECKING:
    from tools.recipe_comparison.variants import Recipe, RecipeVariant

# Settings of a flagfile that the comparison decides for all recipes.
_EQUAL = (
    "train_batch_size",
    "eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_steps",
    "num_warmup_steps",
    "learning_rate",
    "weight_decay",
    "clip_norm",
    "compute_dtype",
    "random_seed",
    "truncation_factor",
    "max_seq_length",
    "max_predictions_per_seq",
    "save_checkpoints_steps",
    "max_eval_steps",
    "do_eval",
    "verify",
    "teacher",
    "input_dir",
    "input_file",
    "output_dir",
)


def read_recipe(entry: str) -> "Recipe":
    """Reads an entry of `recipes`: NAME, FLAGFILE or LOSS=WEIGHT+LOSS, and optionally @SOURCE.

    Raises:
        InputError: the recipe does not exist, or its flags are invalid.
    """
    from tools.recipe_comparison.variants import LIVE, Recipe, expect_codec

    name, _, codec = entry.partition("@")
    if codec not in ("", LIVE):
        expect_codec(codec, "recipes")
    if name.partition("=")[0].partition("+")[0] in LOSSES:
        with naming_setting("recipes"):
            return Recipe(name, codec or None, parse_losses(name.replace("+", ",")))
    recipe_flags = _read_flags(_find_flagfile(name))
    losses, schedules = recipe_flags.pop("losses", None), recipe_flags.pop("loss_schedules", {})
    if losses is None:
        raise InputError(Setting("recipes"), received=f"{name} does not set `losses`")
    stem = Location.parse(name).name.removesuffix(".flags")
    settings = {setting: flags.as_text(value) for setting, value in recipe_flags.items()}
    return Recipe(stem, codec or None, losses, schedules, settings)


def _find_flagfile(name: str) -> Location:
    if (path := Location.parse(name)).is_file():
        return path
    try:
        return Location.parse(published.find(name))
    except ValueError as error:
        known = [*published.names(), *LOSSES]
        hint = suggest(name.partition("=")[0].partition("+")[0], known) or (
            "or give a flagfile's path, or losses, for example kl_divergence=1+masked_lm=1"
        )
        raise InputError(Setting("recipes"), received=error, hint=hint) from error


def _read_flags(path: Location) -> dict[str, Any]:
    """Returns the settings of a flagfile that belong to the recipe, by name."""
    values = run_distill.define_flags()
    try:
        values(["run_distill", f"--flagfile={path}"])
    except (absl_flags.Error, InputError) as error:
        raise InputError(Setting("recipes"), received=f"{path}: {error}") from error
    names = [
        field.name for field in flags.setting_fields(DistillConfig) if field.name not in _EQUAL
    ]
    return {name: values[name].value for name in names if values[name].present}


def read_variants(config: CompareRecipesConfig) -> tuple[list["RecipeVariant"], int]:
    """Returns the variants, and the number of layers of the students."""
    from tools.recipe_comparison import variants

    recipes = [read_recipe(entry) for entry in config.recipes]
    variants.expect_codec(config.cache, "cache")
    teacher = model_directory.find_model(config.teacher).config
    layers, sizes = config.student_layers or max(1, teacher.num_hidden_layers // 2), set()
    if config.student is not None:
        student = model_directory.find_model(config.student).config
        layers, sizes = student.num_hidden_layers, {student.hidden_size}
    recipe_variants = variants.make_variants(
        recipes,
        shapes=variants.Shapes(teacher.num_hidden_layers, layers, (teacher.hidden_size, *sizes)),
        cache=config.cache,
        masked_lm_weight=config.masked_lm_weight or None,
    )
    return recipe_variants, layers


def _compare(values: absl_flags.FlagValues) -> None:
    start_time = time.monotonic()
    config = flags.read_config(values, CompareRecipesConfig)
    running.import_quietly("keras", "tensorflow")
    variants, student_layers = read_variants(config)

    from tools.recipe_comparison import table
    from tools.recipe_comparison.comparison import RecipeComparison

    comparison = RecipeComparison(config, variants, student_layers)
    comparison.reserve()
    with contextlib.closing(comparison):
        run_steps(list(comparison.steps()), start_time)
    report = table.read_report(comparison)
    text = table.markdown(report, table.score_columns(comparison))
    (config.work / "comparison.json").write_json(report)
    (config.work / "comparison.md").write_whole(text.encode("utf-8"))
    print(f"\n{text}")
    minutes = (time.monotonic() - start_time) / 60
    print(f"{minutes:.1f} minutes; comparison.md and comparison.json are in {config.work}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(CompareRecipesConfig), _compare, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
