"""The settings of fine-tuning a model on a task."""

import dataclasses
from typing import Any

from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, parse_numbers, setting


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Settings):
    """One run: one model, one task, one learning rate, one seed."""

    task: str = setting(
        dataclasses.MISSING,
        "Name of a declared task, or path of your own declaration (.yaml).",
        decides_output=False,
    )
    data_dir: Location = setting(
        dataclasses.MISSING, "Directory of the task's files.", decides_output=False
    )
    model: Location = setting(
        dataclasses.MISSING,
        "Model directory with its tokenizer, or a model on the hub.",
        decides_output=False,
        hub_files=hub_id.MODEL,
    )
    output_dir: Location = setting(
        dataclasses.MISSING,
        "Directory for the runs: empty, or that of an earlier run with the same settings.",
        decides_output=False,
    )
    learning_rate: float = setting(
        3e-5, "Peak learning rate; after the peak it falls linearly to 0."
    )
    random_seed: int = setting(1, "Seed of the order of examples, of dropout and of new weights.")
    do_train: bool = setting(True, "Whether to train; otherwise the stored head is scored.")
    train_batch_size: int = setting(32, "Inputs per step.", low=1)
    predict_batch_size: int = setting(
        64, "Inputs per batch in evaluation.", low=1, decides_output=False
    )
    num_train_epochs: float = setting(
        3.0, "Number of epochs over the training inputs; with 0, a random head is scored.", low=0.0
    )
    warmup_proportion: float = setting(
        0.1, "Share of the steps in which the learning rate rises.", low=0.0, high=1.0
    )
    weight_decay: float = setting(
        0.01, "Decoupled weight decay; none on biases and layer norms.", low=0.0
    )
    clip_norm: float = setting(
        1.0, "Global norm to which gradients are clipped; 0 for no clipping.", low=0.0
    )
    max_seq_length: int | None = setting(
        None,
        "Maximum number of tokens of an input. By default 128, or 384 for span tasks, or the "
        "model's number of positions if that is lower.",
        low=4,
        decides_output=False,
    )
    doc_stride: int = setting(
        128,
        "Tokens between the starts of windows of a long context. Windows of a tagged sentence "
        "overlap by at least half.",
        low=1,
    )
    max_query_length: int = setting(64, "Maximum number of tokens of a question.", low=1)
    max_answer_length: int = setting(30, "Maximum number of tokens of an answer.", low=1)
    compute_dtype: str = setting(
        compute_dtype.FLOAT32,
        "Precision of the encoder. auto is mixed_bfloat16 if the hardware supports it, otherwise "
        "float32.",
        choices=compute_dtype.CHOICES,
    )
    finetune_teacher: Location | None = setting(
        None,
        "Teacher that was fine-tuned on the task: a model directory, or a model on the hub.",
        decides_output=False,
        hub_files=hub_id.MODEL,
    )
    teacher_cache: Location | None = setting(
        None,
        "Directory for the teacher's logits of the training inputs, which other students can "
        "read; by default teacher_cache in `output_dir`. A complete cache needs no "
        "`finetune_teacher`.",
        decides_output=False,
    )
    distill_temperature: float = setting(
        2.0, "Temperature of the teacher's and the student's distribution.", low=0.01
    )
    distill_weight: float = setting(
        0.5,
        "Weight of the loss on the teacher's logits; the loss on labels has the rest.",
        low=0.0,
        high=1.0,
    )
    max_train_examples: int | None = setting(
        None, "Maximum number of training examples, drawn at random; all by default.", low=1
    )
    skip_bad_rows: bool = setting(False, "Whether to leave out and count unusable rows.")
    eval_split: str = setting("dev", "Split that is scored and decides the best learning rate.")
    predict_split: str | None = setting(
        None, "Second split to predict, for a submission; for example test."
    )
    log_steps: int = setting(
        50, "Steps between lines of metrics.jsonl.", low=1, decides_output=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.do_train and self.distills:
            name = "teacher_cache" if self.finetune_teacher is None else "finetune_teacher"
            raise InputError(Setting(name), "unset without `do_train`", getattr(self, name))
        if self.teacher_cache is None and self.finetune_teacher is not None:
            object.__setattr__(self, "teacher_cache", self.output_dir / "teacher_cache")

    @property
    def makes_steps(self) -> bool:
        """Whether training makes any steps and therefore needs training examples."""
        return self.do_train and self.num_train_epochs > 0.0

    @property
    def distills(self) -> bool:
        """Whether there are teacher targets to learn from."""
        return self.finetune_teacher is not None or self.teacher_cache is not None

    def output_settings(self) -> dict[str, Any]:
        """Returns the settings that decide the model and its scores, as JSON values."""
        values = super().output_settings()
        if not self.distills:
            del values["distill_temperature"], values["distill_weight"]
        return values


@dataclasses.dataclass(frozen=True)
class GridSettings(Settings):
    """A grid of learning rates and seeds: each rate runs with each seed."""

    learning_rates: tuple[float, ...] = setting(
        (3e-5,),
        "Peak learning rates, separated by commas; after the peak the rate falls linearly to 0.",
        parse=parse_numbers,
    )
    seeds: tuple[int, ...] = setting(
        (1,),
        "Seeds of the runs, separated by commas. A seed decides the order of examples, dropout and "
        "new weights.",
        parse=parse_counts,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.learning_rates) <= 0.0:
            raise InputError(
                Setting("learning_rates"), "numbers above 0", f"{min(self.learning_rates):g}"
            )
