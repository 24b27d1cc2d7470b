"""What stage 1b was asked for."""

import dataclasses

from pipeline.base.errors import InputError
from pipeline.runners.ray import RayConfig
from pipeline.storage.teacher_info import SAMPLED, TOPK


@dataclasses.dataclass(frozen=True)
class TeacherCacheConfig:
    """What `create_teacher_output_data` was asked for; fields are named as its flags.

    Flags that a manifest holds are None unless given, and then must agree with it. `ray` is
    None for this process.
    """

    output_dir: str
    input_dir: str | None = None
    input_file: str | None = None
    teacher: str | None = None
    bert_config_file: str | None = None
    init_checkpoint: str | None = None
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
        if self.task_index >= self.num_tasks:
            raise InputError(
                f"--task_index: expected less than --num_tasks={self.num_tasks}, "
                f"received {self.task_index}"
            )
        if self.ray is not None and self.num_tasks > 1:
            raise InputError(
                "--num_tasks: expected none with --runner=ray, which shares the shards itself, "
                f"received {self.num_tasks}"
            )
        if (self.teacher is None) == (self.bert_config_file is None):
            raise InputError(
                "--teacher: expected either it or --bert_config_file with --init_checkpoint, "
                f"received {'neither' if self.teacher is None else 'both'}"
            )
        if self.teacher is not None and self.init_checkpoint is not None:
            raise InputError(
                "--init_checkpoint: expected --bert_config_file beside it, received --teacher"
            )
        if self.bert_config_file is not None and self.init_checkpoint is None:
            raise InputError("--init_checkpoint: expected the teacher's checkpoint, received none")
        if self.temperatures[:1] != (1.0,) or list(self.temperatures) != sorted(
            set(self.temperatures)
        ):
            raise InputError(
                "--temperatures: expected ascending numbers beginning with 1, received "
                + ",".join(f"{value:g}" for value in self.temperatures)
            )
        self._check_truncation()

    def _check_truncation(self) -> None:
        mass = self.truncation_mass
        if mass is not None and not 0.0 < mass <= 1.0:
            raise InputError(
                f"--truncation_mass: expected a number above 0 and at most 1, received {mass:g}"
            )
        if self.truncation != SAMPLED:
            return
        if mass is not None:
            raise InputError(
                f"--truncation_mass: expected none with --truncation=sampled, received {mass:g}"
            )
        if self.temperatures != (1.0,):
            given = ",".join(f"{value:g}" for value in self.temperatures)
            raise InputError(
                "--temperatures: expected 1, the only temperature of --truncation=sampled, "
                f"received {given}"
            )
