"""The settings of `create_teacher_output_data`."""

import dataclasses
from collections.abc import Sequence

from data_specs.records import POOLINGS
from pipeline.base import hub_id
from pipeline.base.compute_dtype import CHOICES, FLOAT32
from pipeline.base.distribution import DATA_PARALLEL, DISTRIBUTIONS, NOT_DISTRIBUTED
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_numbers, setting
from pipeline.runners.ray import RayConfig
from pipeline.storage.codecs import ENCODINGS, HIDDEN_CODECS, STATES
from pipeline.storage.codecs.states import STATE_PACKINGS
from pipeline.storage.manifest import SAMPLED, TOPK, TRUNCATIONS

_DEFAULT_K = 128
_DEFAULT_BITS = 8
_STATE_BITS = ", ".join(map(str, sorted(STATE_PACKINGS)))


@dataclasses.dataclass(frozen=True)
class TeacherCacheConfig(Settings):
    """The settings of `create_teacher_output_data`; its flags are generated from them.

    Settings that the manifest of the masked examples records are None by default. If given, they
    must equal its values. `ray` is None if this process runs the jobs itself.
    """

    output_dir: Location = setting(
        dataclasses.MISSING,
        "Directory for the teacher cache: empty, or that of an interrupted run to resume.",
        decides_output=False,
    )
    input_dir: Location | None = setting(
        None,
        "Shard directory of masked examples, from create_pretraining_data.",
        decides_output=False,
    )
    input_file: Location | None = setting(
        None,
        "In place of `input_dir`: a glob of shard files, for example 'DIR/*.tfrecord'.",
        decides_output=False,
    )
    # The run configuration identifies the teacher by its configuration and its weights' SHA-256.
    teacher: Location | None = setting(
        None,
        "The teacher: a model directory in Hugging Face's or Google's BERT layout, or a model of "
        "the hub, for example google-bert/bert-base-chinese.",
        decides_output=False,
        hub_files=hub_id.MODEL,
    )
    bert_config_file: Location | None = setting(
        None, "In place of `teacher`: a bert_config.json.", decides_output=False
    )
    init_checkpoint: Location | None = setting(
        None,
        "Requires `bert_config_file`. Prefix of the checkpoint, for example DIR/bert_model.ckpt.",
        decides_output=False,
    )
    truncation_factor: int = setting(
        _DEFAULT_K, "k, the number of tokens stored at a masked position.", low=1
    )
    temperatures: tuple[float, ...] | None = setting(
        None,
        "Temperatures at which the probability mass outside the top-k is stored, ascending from 1. "
        "1,2 by default; 1 with `truncation`=sampled, none with `logit_encoding`=states.",
        parse=parse_numbers,
    )
    truncation: str = setting(
        TOPK,
        "topk stores the k most probable tokens. sampled stores the tokens of k random draws, "
        "which estimate the teacher's distribution without bias.",
        choices=tuple(TRUNCATIONS),
        omit_default=True,
    )
    truncation_mass: float | None = setting(
        None,
        "Stores the most probable tokens of a position until their probabilities sum to this "
        "value, at most k; for example 0.999.",
        low=0.0,
        high=1.0,
        omit_default=True,
    )
    logit_encoding: str = setting(
        "float16",
        "Codec of the teacher's distribution. float16 and compact store a top-k. states stores "
        "the input of the teacher's output table, which gives the whole distribution at any "
        "temperature.",
        choices=tuple(ENCODINGS),
    )
    state_bits: int | None = setting(
        None,
        f"Requires `logit_encoding`=states. Bits per number of a head state: {_STATE_BITS}; 8 by "
        "default.",
        low=min(STATE_PACKINGS),
        high=max(STATE_PACKINGS),
        omit_default=True,
    )
    cache_hidden_states: str | None = setting(
        None, "Groups of teacher layers whose mean hidden state is stored; for example 1-6,7-12."
    )
    hidden_encoding: str = setting(
        "float16", "Codec of the hidden states.", choices=tuple(HIDDEN_CODECS)
    )
    cache_embedding: str | None = setting(
        None,
        "Stores an embedding of each example: the teacher's last hidden state of the first token "
        "(cls), or the mean over all tokens. Requires a second forward pass, over the example "
        "without masks.",
        choices=POOLINGS,
        omit_default=True,
    )
    compute_dtype: str = setting(
        FLOAT32,
        "Precision of the encoder; logits are always float32. auto is mixed_bfloat16 if the "
        "hardware supports it, otherwise float32.",
        choices=CHOICES,
    )
    predict_batch_size: int = setting(64, "Examples in a batch of the teacher.", low=1)
    max_seq_length: int | None = setting(
        None,
        "Maximum length of an input in tokens. Must equal the value in the manifest of the masked "
        "examples.",
        low=1,
        decides_output=False,
    )
    max_predictions_per_seq: int | None = setting(
        None,
        "Maximum number of masked positions of an input. Must equal the value in the manifest of "
        "the masked examples.",
        low=1,
        decides_output=False,
    )
    verify: str = setting(
        "full",
        "Check of the input before the run: full reads every byte, sizes compares file sizes.",
        choices=("full", "sizes"),
        decides_output=False,
    )
    force: bool = setting(
        False,
        "Whether to capture a teacher that predicts the labels significantly worse than their "
        "frequencies do.",
        decides_output=False,
    )
    # Its value does not decide the output: ids are the same, and values within float error.
    distribution: str = setting(
        NOT_DISTRIBUTED,
        "data_parallel divides each batch among all devices of this machine, and the shards among "
        "all joined processes. Requires `backend`=jax.",
        choices=DISTRIBUTIONS,
        decides_output=False,
    )
    num_tasks: int | None = setting(
        None,
        "Number of processes that share the shards. You start each of them with its own "
        "`task_index`. 1 by default, or the number of processes that `distribution`=data_parallel "
        "joins.",
        low=1,
        decides_output=False,
    )
    task_index: int | None = setting(
        None,
        "Requires `num_tasks`. Index of this process, from 0.",
        low=0,
        decides_output=False,
    )
    ray: RayConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill_defaults()
        if (self.task_index or 0) >= (self.num_tasks or 1):
            expected = f"less than `num_tasks`={self.num_tasks or 1}"
            raise InputError(Setting("task_index"), expected, self.task_index)
        if self.ray is not None and self.distribution == DATA_PARALLEL:
            expected = f"{NOT_DISTRIBUTED} with `runner`=ray, whose jobs use one device each"
            raise InputError(Setting("distribution"), expected, self.distribution)
        if self.ray is not None and (self.num_tasks or 1) > 1:
            expected = "unset with `runner`=ray, which shares the shards itself"
            raise InputError(Setting("num_tasks"), expected, self.num_tasks)
        if (self.teacher is None) == (self.bert_config_file is None):
            received = "neither" if self.teacher is None else "both"
            expected = "set, or `bert_config_file` with `init_checkpoint` in its place"
            raise InputError(Setting("teacher"), expected, received)
        if self.teacher is not None and self.init_checkpoint is not None:
            expected = "used together with `bert_config_file`"
            raise InputError(Setting("init_checkpoint"), expected, "`teacher`")
        if self.bert_config_file is not None and self.init_checkpoint is None:
            expected = "set together with `bert_config_file`"
            raise InputError(Setting("init_checkpoint"), expected, "none")
        if self.holds_states:
            self._check_states()
        else:
            self._check_truncation()

    @property
    def holds_states(self) -> bool:
        """Whether head states are stored instead of a top-k."""
        return self.logit_encoding == STATES

    def _fill_defaults(self) -> None:
        if self.temperatures is None:
            default = (1.0,) if self.truncation == SAMPLED else (1.0, 2.0)
            object.__setattr__(self, "temperatures", () if self.holds_states else default)
        if self.state_bits is None and self.holds_states:
            object.__setattr__(self, "state_bits", _DEFAULT_BITS)

    def _check_states(self) -> None:
        """Raises InputError if a setting of the top-k is combined with head states."""
        if self.state_bits not in STATE_PACKINGS:
            raise InputError(Setting("state_bits"), f"one of {_STATE_BITS}", self.state_bits)
        for name, unused in (
            ("temperatures", ()),
            ("truncation", TOPK),
            ("truncation_mass", None),
            ("truncation_factor", _DEFAULT_K),
        ):
            value = getattr(self, name)
            if value != unused:
                expected = "unset with `logit_encoding`=states, which gives all k and temperatures"
                received = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise InputError(Setting(name), expected, received)

    def _check_truncation(self) -> None:
        if self.state_bits is not None:
            expected = "used together with `logit_encoding`=states"
            received = f"`logit_encoding`={self.logit_encoding}"
            raise InputError(Setting("state_bits"), expected, received)
        mass, temperatures = self.truncation_mass, self.temperatures
        expect_ascending_from_1("temperatures", temperatures)
        if mass is not None and not 0.0 < mass <= 1.0:
            expected = "a number above 0 and at most 1"
            raise InputError(Setting("truncation_mass"), expected, f"{mass:g}")
        if self.truncation != SAMPLED:
            return
        if mass is not None:
            expected = "unset with `truncation`=sampled"
            raise InputError(Setting("truncation_mass"), expected, f"{mass:g}")
        if temperatures != (1.0,):
            expected = "1, the only temperature of `truncation`=sampled"
            raise InputError(Setting("temperatures"), expected, _join(temperatures))


def expect_ascending_from_1(setting: str, temperatures: Sequence[float]) -> None:
    """Raises InputError about a setting unless its temperatures ascend from 1."""
    if tuple(temperatures[:1]) != (1.0,) or list(temperatures) != sorted(set(temperatures)):
        expected = "a list of ascending numbers that begins with 1"
        raise InputError(Setting(setting), expected, _join(temperatures))


def _join(temperatures: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in temperatures)
