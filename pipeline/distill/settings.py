"""What stage 2 was asked for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings

# What a loss compares the student with: the teacher's distribution, the true
# token, the teacher's hidden states or attention maps.
TOPK = "topk"
LABEL = "label"
HIDDEN = "hidden states"
ATTENTION = "attention maps"

SOFT_CROSS_ENTROPY = "soft_cross_entropy"
KL_DIVERGENCE = "kl_divergence"
PROBABILITY_COSINE = "probability_cosine"
MASKED_LM = "masked_lm"
HIDDEN_COSINE = "hidden_cosine"
# The same over the masked positions only: all that a cache can hold.
HIDDEN_COSINE_MASKED = "hidden_cosine_masked"
ATTENTION_MSE = "attention_mse"

# The losses that `--losses` takes, and what each needs.
LOSS_NEEDS: Mapping[str, str] = {
    SOFT_CROSS_ENTROPY: TOPK,
    KL_DIVERGENCE: TOPK,
    PROBABILITY_COSINE: TOPK,
    MASKED_LM: LABEL,
    HIDDEN_COSINE: HIDDEN,
    HIDDEN_COSINE_MASKED: HIDDEN,
    ATTENTION_MSE: ATTENTION,
}
LOSS_POSITIONS = ("masked", "all")
# A target where a batch is computed in chunks, float32 [B, 3], all rows alike: how much a
# chunk counts for losses over masked positions, over tokens and over pairs of tokens, as a
# part of the mean chunk.
LOSS_SHARES = "loss_shares"
# What `--distribution` takes.
ALONE = "none"
DATA_PARALLEL = "data_parallel"
DISTRIBUTIONS = (ALONE, DATA_PARALLEL)
# Its name in a run's request, where there are several.
NUM_DATA_STREAMS = "num_data_streams"
SCHEDULES = ("constant", "linear", "cosine")
TAIL_POLICIES = ("drop", "renormalize", "bucket", "label")
# What happens to the tail unless `--tail` says otherwise; the first as the
# Chinese RoBERTa-wwm distillation did.
DEFAULT_TAILS: Mapping[str, str] = {SOFT_CROSS_ENTROPY: "drop", KL_DIVERGENCE: "bucket"}
# Which layers are compared unless `--layer_groups` says otherwise: DistilBERT's
# last ones, DistilRuBERT's equal groups.
DEFAULT_LAYER_GROUPS: Mapping[str, str] = {HIDDEN: "last", ATTENTION: "mean"}
# Tables that `--freeze` takes, and their variables' names.
FREEZABLE = ("word_embeddings", "position_embeddings", "segment_embeddings")


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
    """How a loss's weight goes over the updates, from its first value to its last.

    Attributes:
        shape: one of `SCHEDULES`.
        last: the weight at the last update.
    """

    shape: str
    last: float


def parse_loss_schedules(
    text: str | None, losses: Mapping[str, float]
) -> dict[str, WeightSchedule]:
    """Reads `--loss_schedules`.

    Args:
        text: such as `masked_lm=linear:0,hidden_cosine=cosine:0.5`; or None.
        losses: the losses and their first weights.

    Raises:
        InputError: a loss that has no weight or is there twice, an unknown shape,
            a last weight that is not a number of at least 0.
    """
    schedules: dict[str, WeightSchedule] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, value = part.partition("=")
        shape, _, last = value.partition(":")
        if name not in losses or name in schedules:
            raise InputError(
                Setting("loss_schedules"),
                f"losses of `losses` ({', '.join(losses)}), each once",
                f"{name!r}",
            )
        try:
            weight = losses[name] if shape == "constant" and not last else float(last)
        except ValueError:
            weight = math.nan
        if shape not in SCHEDULES or not 0.0 <= weight < math.inf:
            raise InputError(
                Setting("loss_schedules"),
                f"{name}=constant, {name}=linear:LAST or {name}=cosine:LAST with a last "
                "weight of at least 0",
                f"{part!r}",
            )
        schedules[name] = WeightSchedule(shape, weight)
    return schedules


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
            raise InputError(Setting("losses"), f"names of {', '.join(LOSS_NEEDS)}", f"{name!r}")
        if name in losses:
            raise InputError(Setting("losses"), "each loss once", f"{name} twice")
        try:
            losses[name] = float(weight or 1.0)
        except ValueError as error:
            raise InputError(Setting("losses"), f"a number for {name}", f"{weight!r}") from error
        if not 0.0 < losses[name] < math.inf:
            raise InputError(Setting("losses"), f"a weight above 0 for {name}", weight)
    if not losses:
        raise InputError(Setting("losses"), "at least one loss", "none")
    return losses


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
