"""Runs a small version of a published recipe on your text within minutes, without any model.

offline_distill try_recipe --recipe=distilbert --corpus=TEXT --vocab_file=vocab.txt --work=DIR

Masks the text as the recipe requires, trains a teacher of 12 layers and 64 dimensions for a few
minutes, captures a cache if the recipe reads one, and runs the recipe's flagfile with
--run_local. The result does not show the quality of the recipe. Re-run the command to resume.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.storage import manifest as manifests
from tools import local_teacher
from tools.commands import reserve_directory, run_command
from tools.report.runs import METRICS_FILE, read_metrics

_ROOT = pathlib.Path(__file__).parents[1]
_SEED = 12345
_LAYERS, _HIDDEN_SIZE = 12, 64
_TEACHER_STEPS = 300
_NUM_SHARDS = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The data and models that a recipe's flagfile requires.

    Attributes:
        masking: settings of `create_pretraining_data`.
        cached: whether the recipe reads a teacher cache; otherwise it has a live teacher.
        from_layers: whether the student starts from the teacher's layers; otherwise it is a
            separate model.
        num_layers: layers of a separate student that is half as wide as the teacher; None for
            a separate student of the teacher's shape.
        capture: settings of `create_teacher_output_data`.
        settings: settings that replace those of the flagfile, which are for larger models.
    """

    masking: Mapping[str, object]
    cached: bool
    from_layers: bool
    num_layers: int | None = None
    capture: Mapping[str, object] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)


_STATIC = {"dupe_factor": 1, "segments": "pair"}
_DYNAMIC = {
    "masking": "dynamic",
    "mask_smoothing": 0.7,
    "do_whole_word_mask": False,
    "segments": "single",
}
RECIPES: Mapping[str, Recipe] = {
    "roberta_wwm": Recipe(_STATIC, cached=True, from_layers=False),
    "roberta_wwm_3layers": Recipe(_STATIC, cached=True, from_layers=True),
    "distilbert": Recipe(_DYNAMIC, cached=False, from_layers=True),
    "distilrubert_tiny": Recipe(_DYNAMIC, cached=False, from_layers=True),
    "tinybert_general": Recipe(_STATIC, cached=False, from_layers=False, num_layers=4),
    "minilm_v2": Recipe(
        _STATIC,
        cached=False,
        from_layers=False,
        num_layers=6,
        settings={"relation_heads": 16},
    ),
    "minirbt": Recipe(
        _STATIC,
        cached=True,
        from_layers=False,
        num_layers=6,
        capture={"logit_encoding": "states", "cache_hidden_states": "0,2,4,6,8,10,12"},
    ),
    "rubert_tiny": Recipe(
        {**_STATIC, "segments": "single"},
        cached=True,
        from_layers=False,
        num_layers=3,
        capture={"cache_embedding": "cls"},
    ),
}


@dataclasses.dataclass(frozen=True)
class TryConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    recipe: str = setting(dataclasses.MISSING, "Recipe to try.", choices=tuple(RECIPES))
    corpus: str = setting(dataclasses.MISSING, "Training text: a file, a directory or a glob.")
    vocab_file: str = setting(
        dataclasses.MISSING, "A vocab.txt, tokenizer.json or SentencePiece model."
    )
    work: Location = setting(
        dataclasses.MISSING, "Directory for all results.", decides_output=False
    )
    max_seq_length: int = setting(64, "Maximum number of tokens of an input.", low=16, high=512)


def _mask(config: TryConfig, output_dir: Location, masking: Mapping[str, object]) -> None:
    max_seq_length = config.max_seq_length
    run_command(
        "create_pretraining_data",
        input_dir=config.corpus,
        vocab_file=config.vocab_file,
        output_dir=output_dir,
        max_seq_length=max_seq_length,
        doc_stride=max_seq_length - 2,
        max_predictions_per_seq=-(-max_seq_length * 15 // 100),
        eval_fraction=0.01,
        num_shards=_NUM_SHARDS,
        **masking,
    )


def _write_start(
    examples: Location, directory: Location, *, num_layers: int, hidden_size: int
) -> None:
    """Writes the initial weights of a small model, unless they exist."""
    if not (directory / "config.json").is_file():
        config = local_teacher.local_config(
            manifests.load(examples), num_hidden_layers=num_layers, hidden_size=hidden_size
        )
        local_teacher.write_initial_model(examples, directory, config, seed=_SEED)


def _train_teacher(work: Location, examples: Location) -> None:
    _write_start(examples, work / "start", num_layers=_LAYERS, hidden_size=_HIDDEN_SIZE)
    run_command(
        "run_distill",
        input_dir=examples,
        student=work / "start",
        output_dir=work / "teacher",
        losses="masked_lm=1",
        num_train_steps=_TEACHER_STEPS,
        num_warmup_steps=20,
        train_batch_size=32,
        learning_rate=2e-3,
        max_eval_steps=10,
        save_checkpoints_steps=_TEACHER_STEPS,
    )


def _make_cache(work: Location, settings: Mapping[str, object]) -> None:
    """Captures the first shard of each split, which suffices for the steps of a local run."""
    run_command(
        "create_teacher_output_data",
        input_file=work / "examples/*-00000-of-*.tfrecord",
        teacher=work / "teacher",
        output_dir=work / "cache",
        # The check of the teacher would reject one that was trained for a few minutes.
        force=True,
        **settings,
    )


def _distill(name: str, recipe: Recipe, work: Location) -> None:
    settings = {"student": work / "start"}
    if recipe.from_layers:
        settings = {"init_from": work / "teacher"}
    elif recipe.num_layers is not None:
        settings = {"student": work / "student_start"}
        size = {"num_layers": recipe.num_layers, "hidden_size": _HIDDEN_SIZE // 2}
        _write_start(work / "examples", settings["student"], **size)
    if not recipe.cached:
        settings["teacher"] = work / "teacher"
    run_command(
        "run_distill",
        flagfile=_ROOT / "data_specs" / "recipes" / f"{name}.flags",
        run_local=True,
        input_dir=work / ("cache" if recipe.cached else "examples"),
        output_dir=work / "student",
        **settings,
        **recipe.settings,
    )


def losses_over_steps(directory: Location) -> list[dict[str, float]]:
    """Returns the train lines of a run's `metrics.jsonl`."""
    lines = read_metrics(directory / METRICS_FILE)
    return [line for line in lines if line["split"] == manifests.TRAIN]


def _describe(work: Location) -> str:
    # Importing Keras takes seconds, so it is imported only when it is needed.
    running.import_quietly("keras", "tensorflow")
    from pipeline.distill.step_times import CLOCK_FIELDS

    lines = losses_over_steps(work / "student")
    first, last = lines[0], lines[-1]
    left_out = ("step", "split", "learning_rate", *CLOCK_FIELDS)
    rows = [f"{'':<22} step {first['step']:>4}  step {last['step']:>4}"]
    rows += [
        f"{name:<22} {first[name]:>9.4f}  {last[name]:>9.4f}"
        for name in first
        if name not in left_out
    ]
    return "\n".join(rows)


def _try(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, TryConfig)
    recipe, work, decisive_settings = (
        RECIPES[config.recipe],
        config.work.expect_local(),
        config.output_settings(),
    )
    reserve_directory(work, decisive_settings, "another try")
    _mask(config, work / "examples", recipe.masking)
    examples = work / "examples"
    if "masking" in recipe.masking:
        # In a short training, a teacher learns little from a mask that prefers rare words.
        examples = work / "teacher_examples"
        _mask(config, examples, _STATIC | {"segments": recipe.masking["segments"]})
    _train_teacher(work, examples)
    if recipe.cached:
        _make_cache(work, recipe.capture)
    _distill(config.recipe, recipe, work)
    print(f"\n{_describe(work)}\nstudent: {work / 'student'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(TryConfig), _try, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
