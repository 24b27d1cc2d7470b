"""What stage 2 was asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings
from pipeline.distill.losses.weights import WeightSchedule

# What `--distribution` takes.
ALONE = "none"
DATA_PARALLEL = "data_parallel"
DISTRIBUTIONS = (ALONE, DATA_PARALLEL)
# Its name in a run's request, where there are several.
NUM_DATA_STREAMS = "num_data_streams"
# Tables that `--freeze` takes, and their variables' names.
FREEZABLE = ("word_embeddings", "position_embeddings", "segment_embeddings")


@dataclasses.dataclass(frozen=True)
class StudentConfig(Settings):
    """Where the student comes from; fields are named as the flags of `run_distill`."""

    student: Location | None = None
    bert_config_file: Location | None = None
    init_checkpoint: Location | None = None
    init_from: Location | None = None
    student_layers: int | None = None
    layer_map: str | None = None
    student_hidden_size: int | None = None
    student_attention_heads: int | None = None
    student_intermediate_size: int | None = None
    drop_segments: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [
            name
            for name in ("student", "bert_config_file", "init_from")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise InputError(
                Setting("student"),
                "one of `student`, `bert_config_file`, `init_from`",
                " and ".join(f"`{name}`" for name in given) or "none",
            )
        if self.init_checkpoint is not None and self.bert_config_file is None:
            raise InputError(Setting("init_checkpoint"), "`bert_config_file` beside it", "none")
        shaping = [
            field.name
            for field in dataclasses.fields(self)
            if field.name.startswith(("student_", "layer_", "drop_")) and getattr(self, field.name)
        ]
        if self.init_from is not None and not shaping:
            raise InputError(
                Setting("init_from"), "`student_layers` or `layer_map` beside it", "neither"
            )
        if self.init_from is None and shaping:
            raise InputError(Setting(shaping[0]), "`init_from`=<teacher> beside it", "none")


@dataclasses.dataclass(frozen=True)
class DistillConfig(Settings):
    """What `run_distill` was asked for; fields are named as its flags.

    Flags that a manifest holds are None unless given, and then must agree with
    it; `truncation_factor` may be smaller. At most `train_batch_size` examples are
    computed at once, `gradient_accumulation_steps` times as many make an update;
    all steps that are counted are updates.
    """

    student: StudentConfig
    losses: Mapping[str, float]
    loss_schedules: Mapping[str, WeightSchedule] = dataclasses.field(default_factory=dict)
    teacher: Location | None = None
    loss_positions: str = "masked"
    layer_groups: str | None = None
    freeze: tuple[str, ...] = ()
    output_dir: Location | None = None
    input_dir: Location | None = None
    input_file: Location | None = None
    do_train: bool = True
    do_eval: bool = True
    temperature: float = 1.0
    tail: str | None = None
    truncation_factor: int | None = None
    max_seq_length: int | None = None
    max_predictions_per_seq: int | None = None
    train_batch_size: int = 32
    eval_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    num_train_steps: int = 100_000
    num_warmup_steps: int | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    compute_dtype: str = "float32"
    recompute_activations: bool = False
    random_seed: int = 12345
    shuffle_buffer_size: int = 10_000
    length_buckets: int = 8
    save_checkpoints_steps: int = 1_000
    keep_checkpoints: int = 2
    log_steps: int = 100
    max_eval_steps: int = 100
    deterministic: bool = True
    distribution: str = ALONE
    num_data_streams: int | None = None
    verify: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.do_train or self.do_eval):
            raise InputError(Setting("do_train"), "it or `do_eval`", "neither")
        if self.do_train and not self.output_dir:
            raise InputError(Setting("output_dir"), "a folder for the student", "none")
        for name in self.freeze:
            if name not in FREEZABLE:
                raise InputError(Setting("freeze"), f"names of {', '.join(FREEZABLE)}", f"{name!r}")
        if self.warmup_steps > self.num_train_steps:
            raise InputError(
                Setting("num_warmup_steps"),
                f"at most `num_train_steps`={self.num_train_steps}",
                self.num_warmup_steps,
            )

    @property
    def warmup_steps(self) -> int:
        """Updates over which the learning rate rises: a tenth of all unless given."""
        if self.num_warmup_steps is None:
            return self.num_train_steps // 10
        return self.num_warmup_steps

    @property
    def examples_per_step(self) -> int:
        """Examples of one update."""
        return self.train_batch_size * self.gradient_accumulation_steps


# What `--run_local` leaves at most of each setting.
_LOCAL_LIMITS: Mapping[str, int] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_train_steps": 60,
    "eval_batch_size": 8,
    "max_eval_steps": 8,
    "save_checkpoints_steps": 30,
    "log_steps": 10,
}
# A published rate is for months of steps and models of their size.
_LOCAL_LEARNING_RATE = 1e-3


def shrink(given: dict[str, Any]) -> dict[str, Any]:
    """Returns what changes for a run of minutes, by the names of `DistillConfig`.

    It shows that a recipe runs and that its losses fall; it claims no quality.

    Args:
        given: the settings by name.
    """
    changes = {name: limit for name, limit in _LOCAL_LIMITS.items() if given[name] > limit}
    if given["num_warmup_steps"] is not None:
        # A tenth, as for a run that says nothing.
        changes["num_warmup_steps"] = (given | changes)["num_train_steps"] // 10
    if given["learning_rate"] < _LOCAL_LEARNING_RATE:
        changes["learning_rate"] = _LOCAL_LEARNING_RATE
    return changes
