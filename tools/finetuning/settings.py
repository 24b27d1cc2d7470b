"""What is asked for when a model is fine-tuned on a task."""

import dataclasses
from typing import Any

from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting

# What a run's request leaves out: places, and what does not decide the model.
_FREE_SETTINGS = (
    "task",
    "data_dir",
    "model",
    "output_dir",
    "max_seq_length",
    "finetune_teacher",
    "teacher_cache",
    "log_steps",
    "predict_batch_size",
)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One run: one model, one task, one learning rate, one seed.

    Attributes:
        task: a known task, or the path of a declaration.
        data_dir: where its files lie.
        model: a model directory with its tokenizer.
        output_dir: where the run goes.
        learning_rate: the peak; from there it falls linearly to 0.
        random_seed: decides order, dropout and new weights.
        do_train: whether to train; else the model's own head is evaluated.
        train_batch_size: inputs of a step.
        predict_batch_size: inputs of a batch of evaluation.
        num_train_epochs: passes over the training inputs; 0 evaluates a head that
            nobody trained.
        warmup_proportion: the share of all steps over which the rate rises.
        weight_decay: decoupled; none on biases and layer norms.
        clip_norm: gradients are clipped to this global norm; 0 for no clipping.
        max_seq_length: tokens of an input at most; None for 128, or 384 where
            answers are looked for, or what the model has.
        doc_stride: tokens between the windows of a long context.
        max_query_length: tokens of a question at most.
        max_answer_length: tokens of an answer at most.
        compute_dtype: what the encoder computes in.
        finetune_teacher: a model directory fine-tuned on the task; None without.
        teacher_cache: its logits' directory; None for one in `output_dir`.
        distill_temperature: T.
        distill_weight: how much the teacher's logits count against the labels.
        max_train_examples: so many training examples, drawn at random; None for all.
        skip_bad_rows: whether rows that cannot be used are left out and counted.
        eval_split: what is scored.
        predict_split: a split that is predicted too, for handing in; None for none.
        log_steps: steps between lines of `metrics.jsonl`.

    Raises:
        InputError: settings that do not go together.
    """

    task: str
    data_dir: str
    model: str
    output_dir: str
    learning_rate: float = 3e-5
    random_seed: int = 1
    do_train: bool = True
    train_batch_size: int = 32
    predict_batch_size: int = 64
    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    max_seq_length: int | None = None
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    compute_dtype: str = compute_dtype.FLOAT32
    finetune_teacher: str | None = None
    teacher_cache: str | None = None
    distill_temperature: float = 2.0
    distill_weight: float = 0.5
    max_train_examples: int | None = None
    skip_bad_rows: bool = False
    eval_split: str = "dev"
    predict_split: str | None = None
    log_steps: int = 50

    def __post_init__(self) -> None:
        if not self.do_train and self.distills:
            name = "teacher_cache" if self.finetune_teacher is None else "finetune_teacher"
            raise InputError(Setting(name), "`do_train` with a teacher", "`nodo_train`")

    @property
    def makes_steps(self) -> bool:
        """Whether anything is learned, so that training examples are read."""
        return self.do_train and self.num_train_epochs > 0.0

    @property
    def distills(self) -> bool:
        """Whether there is a teacher's word to learn from."""
        return self.finetune_teacher is not None or self.teacher_cache is not None

    def deciding(self) -> dict[str, Any]:
        """Returns the settings that decide the model and its scores, as JSON values."""
        values = dataclasses.asdict(self)
        if not self.distills:
            del values["distill_temperature"], values["distill_weight"]
        return {name: value for name, value in values.items() if name not in _FREE_SETTINGS}
