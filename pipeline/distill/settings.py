"""What stage 2 was asked for."""

import dataclasses
import math
from collections.abc import Mapping

from pipeline.errors import InputError

# What a loss compares the student with: the teacher's top-k, or the true token.
TOPK = "topk"
LABEL = "label"

# The losses that `--losses` takes, and what each needs.
LOSS_NEEDS: Mapping[str, str] = {
    "soft_cross_entropy": TOPK,
    "kl_divergence": TOPK,
    "probability_cosine": TOPK,
    "masked_lm": LABEL,
}
TAIL_POLICIES = ("drop", "renormalize", "bucket", "label")
# What happens to the tail unless `--tail` says otherwise; the first as the
# Chinese RoBERTa-wwm distillation did.
DEFAULT_TAILS: Mapping[str, str] = {"soft_cross_entropy": "drop", "kl_divergence": "bucket"}


def parse_losses(text: str) -> dict[str, float]:
    """Reads `--losses`.

    Args:
        text: such as `soft_cross_entropy=1,probability_cosine=0.5`; a name
            without a weight has weight 1.

    Raises:
        InputError: an unknown loss, a loss twice, a weight that is not a
            number above 0.
    """
    losses: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("=")
        if name not in LOSS_NEEDS:
            raise InputError(
                f"--losses: expected names of {', '.join(LOSS_NEEDS)}, received {name!r}"
            )
        if name in losses:
            raise InputError(f"--losses: expected each loss once, received {name} twice")
        try:
            losses[name] = float(weight or 1.0)
        except ValueError as error:
            raise InputError(
                f"--losses: expected a number for {name}, received {weight!r}"
            ) from error
        if not 0.0 < losses[name] < math.inf:
            raise InputError(f"--losses: expected a weight above 0 for {name}, received {weight}")
    if not losses:
        raise InputError("--losses: expected at least one loss, received none")
    return losses


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """Where the student comes from; fields are named as the flags of `run_distill`."""

    student: str | None = None
    bert_config_file: str | None = None
    init_checkpoint: str | None = None
    init_from: str | None = None
    student_layers: int | None = None
    layer_map: str | None = None

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("student", "bert_config_file", "init_from")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise InputError(
                "--student: expected one of --student, --bert_config_file, --init_from, "
                f"received {' and '.join('--' + name for name in given) or 'none'}"
            )
        if self.init_checkpoint is not None and self.bert_config_file is None:
            raise InputError(
                "--init_checkpoint: expected --bert_config_file beside it, received none"
            )
        if self.init_from is not None and self.student_layers is None and self.layer_map is None:
            raise InputError(
                "--init_from: expected --student_layers or --layer_map beside it, received neither"
            )
        if self.init_from is None and (self.student_layers or self.layer_map):
            raise InputError(
                "--student_layers: expected --init_from=<teacher> beside it, received none"
            )


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What `run_distill` was asked for; fields are named as its flags.

    Flags that a manifest holds are None unless given, and then must agree with
    it; `truncation_factor` may be smaller. `train_batch_size` examples make a
    step of the accelerator, `gradient_accumulation_steps` of those an update;
    all steps that are counted are updates.
    """

    student: StudentConfig
    losses: Mapping[str, float]
    output_dir: str | None = None
    input_dir: str | None = None
    input_file: str | None = None
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
    random_seed: int = 12345
    shuffle_buffer_size: int = 10_000
    save_checkpoints_steps: int = 1_000
    log_steps: int = 100
    max_eval_steps: int = 100
    deterministic: bool = True
    verify: str = "full"

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval):
            raise InputError("--do_train: expected it or --do_eval, received neither")
        if self.do_train and not self.output_dir:
            raise InputError("--output_dir: expected a folder for the student, received none")
        if self.warmup_steps > self.num_train_steps:
            raise InputError(
                f"--num_warmup_steps: expected at most --num_train_steps={self.num_train_steps}, "
                f"received {self.num_warmup_steps}"
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
