"""The settings of `run_distill`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

from data_specs.records import POOLINGS
from pipeline.base import hub_id
from pipeline.base.compute_dtype import CHOICES, FLOAT32
from pipeline.base.distribution import DISTRIBUTIONS, NOT_DISTRIBUTED
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting, unrecorded
from pipeline.distill.losses import LOSSES
from pipeline.distill.losses.base import LOSS_POSITIONS, TAIL_POLICIES
from pipeline.distill.losses.weights import WeightSchedule, parse_loss_schedules, parse_losses

# The setting's name in the run configuration, which holds it only if it is above 1.
NUM_DATA_STREAMS = "num_data_streams"
# Values of `--freeze`: everything except the masked-LM head, and tables by their variables' names.
ENCODER = "encoder"
FREEZABLE = (ENCODER, "word_embeddings", "position_embeddings", "segment_embeddings")


@dataclasses.dataclass(frozen=True)
class StudentConfig(Settings):
    """The settings of `run_distill` for the model that training starts from."""

    student: Location | None = setting(
        None,
        "Model directory, or model of the hub (ORG/NAME), that training starts from.",
        hub_files=hub_id.MODEL,
    )
    bert_config_file: Location | None = setting(
        None,
        "Replaces `student`: a bert_config.json. Weights are random unless `init_checkpoint` is "
        "given.",
    )
    init_checkpoint: Location | None = setting(
        None,
        "Requires `bert_config_file`. Prefix of the checkpoint, for example DIR/bert_model.ckpt.",
    )
    init_from: Location | None = setting(
        None,
        "Replaces `student`: the teacher whose layers are copied. It is a model directory or a "
        "model of the hub.",
        hub_files=hub_id.MODEL,
    )
    student_layers: int | None = setting(
        None, "Requires `init_from`. Number of layers of the student.", low=1
    )
    layer_map: str | None = setting(
        None,
        "Requires `init_from`. Layers to copy, from 0: even (default), first, last, every:k, or a "
        "list; for example 0,2,4,7,9,11.",
    )
    student_hidden_size: int | None = setting(
        None,
        "Requires `init_from`. Hidden size of a narrower student, cut from the teacher's weights.",
        low=1,
    )
    student_attention_heads: int | None = setting(
        None, "Requires `init_from`. Attention heads; the teacher's number by default.", low=1
    )
    student_intermediate_size: int | None = setting(
        None,
        "Requires `init_from`. Feed-forward size; shrunk with the hidden size by default.",
        low=1,
    )
    drop_segments: bool = setting(
        False,
        "Requires `init_from`. Whether to drop the segment embeddings, which turns a BERT "
        "into a DistilBERT.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = ("student", "bert_config_file", "init_from")
        given = [f"`{name}`" for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            received = "set exactly one of `student`, `bert_config_file` and `init_from`; got "
            received += " and ".join(given) or "none"
            raise InputError(Setting("student"), received=received)
        if self.init_checkpoint is not None and self.bert_config_file is None:
            expected = "used together with `bert_config_file`"
            raise InputError(Setting("init_checkpoint"), expected)
        names = (field.name for field in dataclasses.fields(self))
        names = (name for name in names if name.startswith(("student_", "layer_", "drop_")))
        shaping = [name for name in names if getattr(self, name)]
        if self.init_from is not None and not shaping:
            expected = "used together with `student_layers` or `layer_map`"
            raise InputError(Setting("init_from"), expected)
        if self.init_from is None and shaping:
            raise InputError(Setting(shaping[0]), "used together with `init_from`=TEACHER")


_RANGE = re.compile(r"([1-9][0-9]{0,11})(?:-([1-9][0-9]{0,11}))?")


@dataclasses.dataclass(frozen=True)
class StepRange:
    """A range of consecutive steps.

    Attributes:
        first: the first step, at least 1.
        last: the last step, inclusive.
    """

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a range of steps.

        Example: `10-15` is (10, 15), and `10` is (10, 10).

        Raises:
            InputError: the text is not a range.
        """
        match = _RANGE.fullmatch(text.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(None, "a range of steps, for example 10-15", text)
        return cls(first, last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclasses.dataclass(frozen=True)
class DistillConfig(Settings):
    """The settings of `run_distill`; its flags are generated from them and `StudentConfig`.

    Settings that the cache's manifest also holds are None by default. If given, they must equal
    the manifest's values; only `truncation_factor` may be smaller. At most `train_batch_size`
    examples are computed at once. A step has `gradient_accumulation_steps` batches of this size.
    """

    student: StudentConfig
    losses: Mapping[str, float] = setting(
        {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "Losses and their weights, whose weighted sum is minimized. Names of losses: "
        f"{', '.join(LOSSES)}.",
        parse=parse_losses,
    )
    loss_schedules: Mapping[str, WeightSchedule] = setting(
        {},
        "Losses whose weights change over the steps, from the weight in `losses` to a last "
        "weight. For example masked_lm=linear:0,hidden_cosine=cosine:0.1.",
        parse=parse_loss_schedules,
    )
    # The run configuration holds the SHA-256 of the teacher's weights instead.
    teacher: Location | None = unrecorded(
        None,
        "Live teacher, which computes the targets that the cache does not hold: a model directory "
        "or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
    loss_positions: str = setting(
        "masked",
        "Positions where distributions are compared: masked, or, with `teacher`, all tokens.",
        choices=LOSS_POSITIONS,
    )
    # The run configuration holds the parsed layers instead.
    layer_groups: str | None = unrecorded(
        None,
        "Layers that losses on layers compare: last, mean, skip, uniform, or groups of teacher "
        "layers, each with its student layer, for example 1-6:1,7-12:2. Layer 0 is the output of "
        "the embeddings. Each loss has its own default.",
    )
    relation_heads: int | None = setting(
        None,
        "Number of heads that relation_kl splits queries, keys and values into. It must divide the "
        "hidden sizes of both models. The teacher's number of attention heads by default.",
        low=1,
        omit_default=True,
    )
    embedding_pooling: str | None = setting(
        None,
        "Pooling of the last hidden states for embedding_cosine and embedding_mse: cls for the "
        "first token, mean for the mean over all tokens. By default, the pooling of the cache, or "
        "mean.",
        choices=POOLINGS,
        omit_default=True,
    )
    freeze: tuple[str, ...] = setting(
        (),
        f"Parts that are not trained: any of {', '.join(FREEZABLE)}. With encoder, only the "
        "masked-LM head is trained, without dropout and several times as fast.",
        choices=FREEZABLE,
        parse=parse_words,
    )
    output_dir: Location | None = unrecorded(
        None, "Directory for the student: empty, or of an interrupted run. Required for training."
    )
    input_dir: Location | None = unrecorded(
        None,
        "A teacher cache. With `teacher`, or for `losses`=masked_lm=1, also masked examples or "
        "unmasked windows.",
    )
    input_file: Location | None = unrecorded(None, "Replaces `input_dir`: a glob of its shards.")
    do_train: bool = setting(True, "Whether to train.")
    do_eval: bool = unrecorded(True, "Whether to evaluate at every checkpoint and at the end.")
    temperature: float = setting(
        1.0, "Distillation temperature T, for the losses that use one.", low=0.01
    )
    tail: str | None = setting(
        None,
        "Treatment of the probability mass outside the top-k. Each loss has its own default.",
        choices=TAIL_POLICIES,
    )
    truncation_factor: int | None = setting(
        None,
        "k, the number of the teacher's tokens used at a position. With a top-k cache, the cache's "
        "k is the default and the maximum. Otherwise, the default is the whole distribution.",
        low=1,
    )
    # The run configuration holds the cache's checksum, which covers these two settings.
    max_seq_length: int | None = unrecorded(
        None,
        "Maximum length of an input in tokens. Must equal the value in the cache's manifest.",
        low=1,
    )
    max_predictions_per_seq: int | None = unrecorded(
        None,
        "Maximum number of masked positions of an input. Must equal the value in the cache's "
        "manifest.",
        low=1,
    )
    train_batch_size: int = setting(32, "Examples in a training batch.", low=1)
    eval_batch_size: int = unrecorded(32, "Examples in an evaluation batch.", low=1)
    gradient_accumulation_steps: int = setting(
        1, "Number of batches in a step (optimizer update).", low=1
    )
    num_train_steps: int = setting(100_000, "Number of steps to train.", low=1)
    num_warmup_steps: int | None = setting(
        None,
        "Steps over which the learning rate rises to its peak; a tenth of `num_train_steps` by "
        "default.",
        low=0,
    )
    learning_rate: float = setting(
        5e-5, "Peak learning rate, from which it falls linearly to 0.", low=0.0
    )
    weight_decay: float = setting(
        0.01, "Decoupled weight decay, except on biases and layer norms.", low=0.0
    )
    clip_norm: float = setting(
        1.0, "Global norm that gradients are clipped to; 0 for no clipping.", low=0.0
    )
    compute_dtype: str = setting(
        FLOAT32,
        "Precision of the student. auto is mixed_bfloat16 if the hardware supports it, otherwise "
        "float32.",
        choices=CHOICES,
    )
    recompute_activations: bool = unrecorded(
        False,
        "Whether to recompute the activations within the student's layers for gradients "
        "(gradient checkpointing). The results are the same, with less memory and more time.",
    )
    random_seed: int = setting(
        12345,
        "Seed of the order of examples, of dropout and of new weights.",
        low=0,
        high=2**32 - 1,
    )
    shuffle_buffer_size: int = setting(10_000, "Examples that are shuffled in memory.", low=1)
    length_buckets: int | None = setting(
        None,
        "Number of padded lengths. The inputs of a step are sorted by length and padded in "
        "microbatches. With 1, all inputs are padded to `max_seq_length`. By default 8, or 4 on "
        "TPUs, where programs take long to compile. A resumed run keeps its number.",
        low=1,
    )
    save_checkpoints_steps: int = unrecorded(1_000, "Steps between checkpoints.", low=1)
    keep_checkpoints: int = unrecorded(
        2,
        "Number of newest checkpoints to keep. Training resumes from the newest one whose "
        "checksum matches.",
        low=1,
    )
    log_steps: int = unrecorded(100, "Steps between lines of metrics.jsonl.", low=1)
    profile_steps: StepRange | None = unrecorded(
        None,
        "Steps FIRST-LAST whose trace is written to the folder profile of `output_dir`, for "
        "TensorBoard and, with `backend`=jax, for ui.perfetto.dev; for example 10-15.",
        parse=StepRange.parse,
    )
    max_eval_steps: int = unrecorded(100, "Maximum number of batches of an evaluation.", low=1)
    deterministic: bool = setting(True, "Whether repeated runs on a CPU are bit-identical.")
    # Results are the same within float error.
    distribution: str = unrecorded(
        NOT_DISTRIBUTED,
        "data_parallel divides each batch among all devices of all processes. Requires "
        "`backend`=jax.",
        choices=DISTRIBUTIONS,
    )
    num_data_streams: int | None = setting(
        None,
        "Number of data streams: each is a part of the shards that one process reads. Every step "
        "takes the same number of examples from each stream. By default, one stream per process. "
        "A resumed run keeps its number.",
        low=1,
        omit_default=True,
    )
    verify: str = unrecorded(
        "full",
        "Check of the input before the run: full reads every byte, sizes compares file sizes.",
        choices=("full", "sizes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill_schedules()
        if not (self.do_train or self.do_eval):
            raise InputError(None, received="set `do_train` or `do_eval`; both are off")
        if self.do_train and not self.output_dir:
            raise InputError(Setting("output_dir"), "set if `do_train` is set", "none")
        if self.warmup_steps > self.num_train_steps:
            expected = f"at most `num_train_steps`={self.num_train_steps}"
            raise InputError(Setting("num_warmup_steps"), expected, self.num_warmup_steps)
        if self.profile_steps is not None and self.profile_steps.last > self.num_train_steps:
            expected = f"steps up to `num_train_steps`={self.num_train_steps}"
            raise InputError(Setting("profile_steps"), expected, self.profile_steps)

    def _fill_schedules(self) -> None:
        """Refuses schedules of losses that are not trained, and fills in the last weights."""
        schedules = {}
        for name, schedule in self.loss_schedules.items():
            if name not in self.losses:
                expected = f"a list that names only losses in `losses` ({', '.join(self.losses)})"
                raise InputError(Setting("loss_schedules"), expected, f"{name!r}")
            last = self.losses[name] if schedule.last is None else schedule.last
            schedules[name] = dataclasses.replace(schedule, last=last)
        object.__setattr__(self, "loss_schedules", schedules)

    @property
    def warmup_steps(self) -> int:
        """Number of updates over which the learning rate rises, by default a tenth of all."""
        if self.num_warmup_steps is None:
            return self.num_train_steps // 10
        return self.num_warmup_steps

    @property
    def examples_per_step(self) -> int:
        """Number of examples of one update."""
        return self.train_batch_size * self.gradient_accumulation_steps


# Maximum values of settings with `--run_local`.
_LOCAL_LIMITS: Mapping[str, int] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_train_steps": 60,
    "eval_batch_size": 8,
    "max_eval_steps": 8,
    "save_checkpoints_steps": 30,
    "log_steps": 10,
}
# Published learning rates suit long runs and large models, not a run of minutes.
_LOCAL_LEARNING_RATE = 1e-3


def short_run_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings to change for a run of minutes, by the names of `DistillConfig`.

    Such a run shows that a recipe works and that its losses fall, not the quality of its student.

    Args:
        given: the settings by name.
    """
    changes = {name: limit for name, limit in _LOCAL_LIMITS.items() if given[name] > limit}
    if given["num_warmup_steps"] is not None:
        # The default, a tenth.
        changes["num_warmup_steps"] = (given | changes)["num_train_steps"] // 10
    if given["learning_rate"] < _LOCAL_LEARNING_RATE:
        changes["learning_rate"] = _LOCAL_LEARNING_RATE
    return changes
