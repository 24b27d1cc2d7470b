"""What stage 1b was asked for."""

import dataclasses

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings
from pipeline.runners.ray import RayConfig
from pipeline.storage.manifest import SAMPLED, TOPK


@dataclasses.dataclass(frozen=True)
class TeacherCacheConfig(Settings):
    """What `create_teacher_output_data` was asked for; fields are named as its flags.

    Flags that a manifest holds are None unless given, and then must agree with it. `ray` is
    None for this process.
    """

    output_dir: Location
    input_dir: Location | None = None
    input_file: Location | None = None
    teacher: Location | None = None
    bert_config_file: Location | None = None
    init_checkpoint: Location | None = None
    truncation_factor: int = 128
    temperatures: tuple[float, ...] = (1.0, 2.0)
    truncation: str = TOPK
    truncation_mass: float | None = None
    logit_encoding: str = "float16"
    cache_hidden_states: str | None = None
    hidden_encoding: str = "float16"
    compute_dtype: str = "float32"
    predict_batch_size: int = 64
    max_seq_length: int | None = None
    max_predictions_per_seq: int | None = None
    verify: str = "full"
    num_tasks: int = 1
    task_index: int = 0
    ray: RayConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_index >= self.num_tasks:
            raise InputError(
                Setting("task_index"), f"less than `num_tasks`={self.num_tasks}", self.task_index
            )
        if self.ray is not None and self.num_tasks > 1:
            raise InputError(
                Setting("num_tasks"),
                "none with `runner`=ray, which shares the shards itself",
                self.num_tasks,
            )
        if (self.teacher is None) == (self.bert_config_file is None):
            raise InputError(
                Setting("teacher"),
                "either it or `bert_config_file` with `init_checkpoint`",
                "neither" if self.teacher is None else "both",
            )
        if self.teacher is not None and self.init_checkpoint is not None:
            raise InputError(
                Setting("init_checkpoint"), "`bert_config_file` beside it", "`teacher`"
            )
        if self.bert_config_file is not None and self.init_checkpoint is None:
            raise InputError(Setting("init_checkpoint"), "the teacher's checkpoint", "none")
        if self.temperatures[:1] != (1.0,) or list(self.temperatures) != sorted(
            set(self.temperatures)
        ):
            raise InputError(
                Setting("temperatures"),
                "ascending numbers beginning with 1",
                ",".join(f"{value:g}" for value in self.temperatures),
            )
        self._check_truncation()

    def _check_truncation(self) -> None:
        mass = self.truncation_mass
        if mass is not None and not 0.0 < mass <= 1.0:
            raise InputError(
                Setting("truncation_mass"), "a number above 0 and at most 1", f"{mass:g}"
            )
        if self.truncation != SAMPLED:
            return
        if mass is not None:
            raise InputError(
                Setting("truncation_mass"), "none with `truncation`=sampled", f"{mass:g}"
            )
        if self.temperatures != (1.0,):
            given = ",".join(f"{value:g}" for value in self.temperatures)
            raise InputError(
                Setting("temperatures"), "1, the only temperature of `truncation`=sampled", given
            )
