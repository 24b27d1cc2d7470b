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
        "A known task, or the path of a declaration (.yaml) of your own.",
        decides_output=False,
    )
    data_dir: Location = setting(
        dataclasses.MISSING, "Folder of the task's files.", decides_output=False
    )
    model: Location = setting(
        dataclasses.MISSING,
        "Model directory with its tokenizer, or a model of the hub.",
        decides_output=False,
        hub_files=hub_id.MODEL,
    )
    output_dir: Location = setting(
        dataclasses.MISSING,
        "Directory for the runs: empty, or that of an earlier run of the same settings.",
        decides_output=False,
    )
    learning_rate: float = setting(3e-5, "Peak; from there the rate falls linearly to 0.")
    random_seed: int = setting(1, "Decides order, dropout and new weights.")
    do_train: bool = setting(True, "Whether to train; otherwise the model's own head is scored.")
    train_batch_size: int = setting(32, "Inputs of a step.", low=1)
    predict_batch_size: int = setting(
        64, "Inputs of a batch of evaluation.", low=1, decides_output=False
    )
    num_train_epochs: float = setting(
        3.0, "Passes over the training inputs; 0 scores a random head.", low=0.0
    )
    warmup_proportion: float = setting(
        0.1, "Share of the steps over which the rate rises.", low=0.0, high=1.0
    )
    weight_decay: float = setting(
        0.01, "Decoupled weight decay; none on biases and layer norms.", low=0.0
    )
    clip_norm: float = setting(
        1.0, "Global norm that gradients are clipped to; 0 for no clipping.", low=0.0
    )
    max_seq_length: int | None = setting(
        None,
        "Tokens of an input at most. By default 128, or 384 for questions, or the model's "
        "positions if it has fewer.",
        low=4,
        decides_output=False,
    )
    doc_stride: int = setting(
        128,
        "Tokens between the windows of a long context; those of a tagged sentence overlap by half "
        "or more.",
        low=1,
    )
    max_query_length: int = setting(64, "Tokens of a question at most.", low=1)
    max_answer_length: int = setting(30, "Tokens of an answer at most.", low=1)
    compute_dtype: str = setting(
        compute_dtype.FLOAT32,
        "Precision of the encoder. auto is mixed_bfloat16 where the hardware supports it, else "
        "float32.",
        choices=compute_dtype.CHOICES,
    )
    finetune_teacher: Location | None = setting(
        None,
        "Model, in a directory or of the hub, fine-tuned on the task, to learn from.",
        decides_output=False,
        hub_files=hub_id.MODEL,
    )
    teacher_cache: Location | None = setting(
        None,
        "Directory for the teacher's logits over the training inputs, which other students can "
        "read; teacher_cache in `output_dir` by default. A complete one needs no "
        "`finetune_teacher`.",
        decides_output=False,
    )
    distill_temperature: float = setting(2.0, "Temperature of both distributions.", low=0.01)
    distill_weight: float = setting(
        0.5, "Weight of the teacher's logits; the labels have the rest.", low=0.0, high=1.0
    )
    max_train_examples: int | None = setting(
        None, "Training examples at most, drawn at random; all by default.", low=1
    )
    skip_bad_rows: bool = setting(False, "Whether to leave out and count unusable rows.")
    eval_split: str = setting("dev", "Split that is scored, and decides the best rate.")
    predict_split: str | None = setting(
        None, "Split that is predicted as well, for handing in; for example test."
    )
    log_steps: int = setting(
        50, "Steps between lines of metrics.jsonl.", low=1, decides_output=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.do_train and self.distills:
            name = "teacher_cache" if self.finetune_teacher is None else "finetune_teacher"
            raise InputError(Setting(name), "`do_train` with a teacher", "`nodo_train`")
        if self.teacher_cache is None and self.finetune_teacher is not None:
            object.__setattr__(self, "teacher_cache", self.output_dir / "teacher_cache")

    @property
    def makes_steps(self) -> bool:
        """Whether anything is learned, so that training examples are read."""
        return self.do_train and self.num_train_epochs > 0.0

    @property
    def distills(self) -> bool:
        """Whether there are teacher targets to learn from."""
        return self.finetune_teacher is not None or self.teacher_cache is not None

    def deciding(self) -> dict[str, Any]:
        """Returns the settings that decide the model and its scores, as JSON values."""
        values = self.decisive()
        if not self.distills:
            del values["distill_temperature"], values["distill_weight"]
        return values


@dataclasses.dataclass(frozen=True)
class GridSettings(Settings):
    """Learning rates and seeds, each with each."""

    learning_rates: tuple[float, ...] = setting(
        (3e-5,),
        "Peaks of the learning rate, separated by commas; from there it falls linearly to 0.",
        parse=parse_numbers,
    )
    seeds: tuple[int, ...] = setting(
        (1,),
        "Seeds, separated by commas; each decides order, dropout and new weights of a run.",
        parse=parse_counts,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.learning_rates) <= 0.0:
            raise InputError(
                Setting("learning_rates"), "numbers above 0", f"{min(self.learning_rates):g}"
            )
