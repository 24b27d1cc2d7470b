"""The settings of tools that train several students: `compare_recipes` and `study`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, parse_words, setting
from tools.finetune import parse_tasks


@dataclasses.dataclass(frozen=True)
class StudentRunsConfig(Settings):
    """The settings that tools with several students share."""

    teacher: Location = setting(
        dataclasses.MISSING,
        "Model directory with its tokenizer, or a model on the hub.",
        hub_files=hub_id.MODEL,
        decides_output=False,
    )
    input_dir: str = setting(dataclasses.MISSING, "Training text: a file, directory or glob.")
    work: Location = setting(
        dataclasses.MISSING,
        "Directory for all results. Re-run the command with it to resume.",
        decides_output=False,
    )
    recipes: tuple[str, ...] = setting(
        ("masked_lm", "roberta_wwm", "distilbert"),
        "Recipes, separated by commas. Each is a published recipe's name, the path of a flagfile, "
        "or losses with their weights, for example kl_divergence=5+masked_lm=2. A suffix @CODEC "
        "names the source of teacher targets: a cache such as compact-32 (k), sampled-12 (draws), "
        "states-8 (bits), or live for a live teacher. By default `cache`, or live for losses "
        "that no cache supports.",
        parse=parse_words,
        decides_output=False,
    )
    cache: str = setting(
        "compact-128", "Cache codec of recipes without @CODEC.", decides_output=False
    )
    tasks: Mapping[str, Location] = setting(
        {},
        "Tasks for fine-tuning and the directories of their files, for example sst2=DIR,mrpc=DIR.",
        parse=parse_tasks,
        decides_output=False,
    )
    max_task_examples: int | None = setting(
        None,
        "Maximum number of training examples of a task; the default depends on the task.",
        low=1,
    )
    seeds: tuple[int, ...] = setting(
        (1, 2),
        "At least two seeds, separated by commas. Each trains one student of each recipe.",
        parse=parse_counts,
        decides_output=False,
    )
    student_layers: int | None = setting(
        None, "Number of student layers; half of the teacher's by default.", low=1
    )
    train_batch_size: int = setting(32, "Examples per step.", low=1)
    learning_rate: float = setting(5e-4, "Peak learning rate of all students.", low=0.0)
    compute_dtype: str = setting(
        compute_dtype.AUTO,
        "Precision of teacher and students. auto is mixed_bfloat16 if the hardware supports it, "
        "otherwise float32.",
        choices=compute_dtype.CHOICES,
    )
    max_seq_length: int = setting(128, "Maximum number of tokens of an input.", low=16)
    do_whole_word_mask: bool = setting(
        True, "Whether to mask whole words; it should match the teacher's pre-training."
    )
    dupe_factor: int = setting(1, "Masked copies of each window in the caches.", low=1)
    num_shards: int = setting(
        32, "Number of training shards of masked examples; caches are cut by whole shards.", low=1
    )
    max_eval_steps: int = setting(
        200, "Maximum number of batches of 32 per evaluation.", low=1, decides_output=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work.expect_local()
        if len(self.seeds) < 2:
            raise InputError(Setting("seeds"), "at least two seeds", len(self.seeds))


@dataclasses.dataclass(frozen=True)
class CompareRecipesConfig(StudentRunsConfig):
    """The settings of `compare_recipes`; its flags are generated from them."""

    other_text: str | None = setting(
        None, "Second evaluation text, of another kind than the training text."
    )
    train_seconds: float = setting(
        600.0,
        "Training time of each student in seconds, which decides its number of steps. Compilation "
        "and the capture of caches do not count.",
        low=0.001,
    )
    baseline_steps: int | None = setting(
        None,
        "Replaces `train_seconds`: number of steps of a student with masked_lm only. The other "
        "students get the steps that fit in its time. Use it on machines whose speed changes.",
        low=1,
        omit_default=True,
    )
    cache_bytes: int | None = setting(
        None,
        "Maximum bytes of training shards per cache; larger caches are truncated to it. By default "
        "the size of the smallest cache of the first run.",
        low=1,
        decides_output=False,
    )
    student: Location | None = setting(
        None,
        "Model directory, or a model on the hub, from which all students start. By default they "
        "start from layers of the teacher.",
        hub_files=hub_id.MODEL,
        decides_output=False,
    )
    masked_lm_weight: float = setting(
        1.0,
        "Weight of masked_lm when it is added to a recipe without it; 0 trains each recipe only as "
        "it is written.",
        low=0.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student is not None and self.student_layers is not None:
            expected = "unset with `student`"
            raise InputError(Setting("student_layers"), expected, self.student_layers)

    def run_config(self) -> dict[str, Any]:
        """Returns the settings that decide all trials, as JSON values.

        Recipes, tasks and seeds may be added to a directory later.
        """
        models = (("teacher", self.teacher), ("student", self.student))
        paths = {name: model and str(model.resolve()) for name, model in models}
        return {"kind": "comparison of recipes", **self.output_settings(), **paths}
