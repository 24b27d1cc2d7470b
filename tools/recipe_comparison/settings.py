"""The settings of tools that train students side by side: `compare_recipes` and `study`."""

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
    """The settings that such tools share."""

    teacher: Location = setting(
        dataclasses.MISSING,
        "Model directory with its tokenizer, or model of the hub.",
        hub_files=hub_id.MODEL,
        decides_output=False,
    )
    input_dir: str = setting(dataclasses.MISSING, "Text to train on: a file, directory or glob.")
    work: Location = setting(
        dataclasses.MISSING,
        "Directory for everything. Re-running the command makes only what is missing there.",
        decides_output=False,
    )
    recipes: tuple[str, ...] = setting(
        ("masked_lm", "roberta_wwm", "distilbert"),
        "Recipes, separated by commas. Each is a published recipe's name, the path of a flagfile, "
        "or losses with their weights, for example kl_divergence=5+masked_lm=2. @CODEC after it "
        "names the source of teacher targets: a cache such as compact-32 (k), sampled-12 (draws), "
        "states-8 (bits), or live for a live teacher. By default `cache`, or live for losses "
        "that no cache serves.",
        parse=parse_words,
        decides_output=False,
    )
    cache: str = setting("compact-128", "Cache of recipes that name none.", decides_output=False)
    tasks: Mapping[str, Location] = setting(
        {},
        "Tasks that students are fine-tuned on, and the directories of their files, "
        "task=directory,….",
        parse=parse_tasks,
        decides_output=False,
    )
    seeds: tuple[int, ...] = setting(
        (1, 2),
        "Seeds, at least two, each of which trains one student of each recipe.",
        parse=parse_counts,
        decides_output=False,
    )
    student_layers: int | None = setting(
        None, "Layers of the students; half of the teacher's by default.", low=1
    )
    train_batch_size: int = setting(32, "Examples of a step.", low=1)
    learning_rate: float = setting(5e-4, "Peak learning rate of all students.", low=0.0)
    compute_dtype: str = setting(
        compute_dtype.AUTO,
        "Precision of teacher and students. auto is mixed_bfloat16 where the hardware supports "
        "it, else float32.",
        choices=compute_dtype.CHOICES,
    )
    max_seq_length: int = setting(128, "Longest input in tokens.", low=16)
    do_whole_word_mask: bool = setting(
        True, "Whether whole words are masked; set it as the teacher was trained."
    )
    dupe_factor: int = setting(1, "Masked copies of each window in the caches.", low=1)
    num_shards: int = setting(
        32, "Training shards of the masked examples: caches are cut by whole shards.", low=1
    )
    max_eval_steps: int = setting(
        200, "Batches of 32 of each evaluation at most.", low=1, decides_output=False
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
        None, "Text of other kinds, on which students are evaluated as well."
    )
    max_task_examples: int | None = setting(
        None, "Training examples of a task at most; each task has its own default.", low=1
    )
    train_seconds: float = setting(
        600.0,
        "Training time of each student, from which its number of steps follows. Compilation and "
        "the making of caches do not count.",
        low=0.001,
    )
    baseline_steps: int | None = setting(
        None,
        "In place of `train_seconds`: steps of a student of masked_lm alone. The others have as "
        "many as fit in its time. For machines whose speed changes.",
        low=1,
        omit_default=True,
    )
    cache_bytes: int | None = setting(
        None,
        "Bytes of training shards that each cache may have; larger caches lose examples. By "
        "default the bytes of the smallest cache of the first run.",
        low=1,
        decides_output=False,
    )
    student: Location | None = setting(
        None,
        "Model directory, or model of the hub, that all students start from. By default layers of "
        "the teacher.",
        hub_files=hub_id.MODEL,
        decides_output=False,
    )
    masked_lm_weight: float = setting(
        1.0, "Weight of masked_lm where it is added to a recipe that has none.", low=0.001
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student is not None and self.student_layers is not None:
            expected = "unset with `student`"
            raise InputError(Setting("student_layers"), expected, self.student_layers)

    def request(self) -> dict[str, Any]:
        """Returns the settings that decide all cells, as JSON values.

        Recipes, tasks and seeds may be added to a directory later.
        """
        models = (("teacher", self.teacher), ("student", self.student))
        paths = {name: model and str(model.resolve()) for name, model in models}
        return {"kind": "comparison of recipes", **self.decisive(), **paths}
