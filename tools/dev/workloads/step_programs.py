"""The training step of run_distill and the teacher's forward pass, built only from shapes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from data_specs import records
from pipeline.distill.settings import DistillConfig
from pipeline.models import flops
from pipeline.models.config import EncoderConfig
from pipeline.storage.codecs import STATES
from pipeline.storage.manifest import TeacherInfo

if TYPE_CHECKING:
    from pipeline.distill.cached_head import CachedHead
    from pipeline.distill.distiller import Distiller
    from pipeline.models.masked_lm import MaskedLM

Arrays = dict[str, np.ndarray]
# Default temperatures of a teacher cache.
_TEMPERATURES = (1.0, 2.0)
_SEED = 12345
# Programs by the value of `part`.
PARTS = {"step": ("step",), "teacher": ("teacher",), "both": ("step", "teacher")}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Models, settings and shapes of a training step and of a teacher's forward pass.

    Attributes:
        config: settings of `run_distill`. If `teacher` is set, the teacher runs together with the
            student. Otherwise a batch has the targets of a cache.
        student: shape of the student.
        teacher: shape of the teacher.
        max_seq_length: L.
        max_predictions_per_seq: P.
        truncation_factor: k of the cache.
        logit_encoding: codec of the cache.
        hidden_groups: layer groups whose hidden states are in the cache.
    """

    config: DistillConfig
    student: EncoderConfig
    teacher: EncoderConfig
    max_seq_length: int
    max_predictions_per_seq: int
    truncation_factor: int = 128
    logit_encoding: str = "float16"
    hidden_groups: tuple[str, ...] = ()

    @property
    def num_positions(self) -> int:
        """Number of positions of an input at which distributions are compared."""
        everywhere = self.config.loss_positions == "all"
        return self.max_seq_length if everywhere else self.max_predictions_per_seq

    @property
    def live(self) -> bool:
        """Whether the teacher runs together with the student."""
        return self.config.teacher is not None

    @property
    def holds_states(self) -> bool:
        """Whether a batch has head states instead of a top-k."""
        return not self.live and self.logit_encoding == STATES

    @property
    def cached_ids(self) -> int:
        """Number of ids at a masked position of the cache.

        A cache of head states counts as one with one id.
        """
        return 1 if self.holds_states else min(self.truncation_factor, self.teacher.vocab_size)

    def with_precision(self, dtype: str, recompute_activations: bool) -> Self:
        """Returns the same workload with another dtype policy and choice of recomputation."""
        config = dataclasses.replace(
            self.config, compute_dtype=dtype, recompute_activations=recompute_activations
        )
        return dataclasses.replace(self, config=config)

    def teacher_info(self) -> TeacherInfo | None:
        """Returns the description of the teacher cache; None if the teacher is live."""
        if self.live:
            return None
        states: dict[str, Any] = {}
        if self.holds_states:
            states = {"state_bits": 8, "state_size": self.teacher.embedding_width}
        return TeacherInfo(
            self.teacher.vocab_size if self.holds_states else self.cached_ids,
            self.logit_encoding,
            () if self.holds_states else _TEMPERATURES,
            teacher={},
            parent={},
            hidden_groups=self.hidden_groups,
            hidden_encoding="int8" if self.hidden_groups else None,
            hidden_size=self.teacher.hidden_size,
            embedding=self.config.embedding_pooling,
            **states,
        )


def build_distiller(workload: Workload, batch_size: int) -> "Distiller":
    """Returns the student with its objective and optimizer, as in `run_distill`.

    Args:
        workload: the workload.
        batch_size: number of examples of a step on one device.
    """
    from pipeline.distill.distiller import Distiller
    from pipeline.distill.objective import choose_objective
    from pipeline.distill.optimization import compile_distiller
    from pipeline.distill.student import prepare_for_training
    from pipeline.models import position_blocks
    from pipeline.models.masked_lm import MaskedLM

    config = workload.config
    student = MaskedLM(workload.student, dtype=config.compute_dtype, seed=_SEED)
    prepare_for_training(student, config)
    objective = choose_objective(
        config,
        workload.teacher_info(),
        student=workload.student,
        teacher=workload.teacher,
        truncation_factor=(
            config.truncation_factor
            if workload.live or workload.holds_states
            else workload.cached_ids
        ),
    )
    distiller = Distiller(
        student,
        objective,
        teacher=build_teacher(workload) if workload.live else None,
        cached_head=_build_head(workload) if workload.holds_states else None,
        teacher_hidden_size=workload.teacher.hidden_size,
        teacher_embedding_size=workload.teacher.hidden_size,
        num_steps=config.num_train_steps,
        steps_per_update=config.gradient_accumulation_steps,
        seed=_SEED,
        block_size=position_blocks.block_size(
            batch_size=batch_size,
            num_positions=workload.num_positions,
            vocab_size=workload.student.vocab_size,
        ),
    )
    compile_distiller(distiller, config, steps_per_update=config.gradient_accumulation_steps)
    return distiller


def train_state(distiller: "Distiller") -> tuple[list[Any], ...]:
    """Returns the state of `Distiller.train_step` on JAX."""
    variables = (
        distiller.trainable_variables,
        distiller.non_trainable_variables,
        distiller.optimizer.variables,
        distiller.metrics_variables,
    )
    return tuple([variable.value for variable in group] for group in variables)


def build_teacher(workload: Workload) -> "MaskedLM":
    """Returns a teacher with random weights."""
    from pipeline.models.masked_lm import MaskedLM

    dtype = workload.config.compute_dtype
    return MaskedLM(workload.teacher, dtype=dtype, logits_dtype="float32", seed=_SEED)


def _build_head(workload: Workload) -> "CachedHead":
    """Returns an output layer of zeros for a cache of head states."""
    from pipeline.distill.cached_head import CachedHead

    shape = workload.teacher.vocab_size, workload.teacher.embedding_width
    return CachedHead(np.zeros(shape, np.float16), np.zeros(shape[:1], np.float32))


def select_topk(workload: Workload, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Returns the targets that `create_teacher_output_data` keeps of a teacher's outputs."""
    from pipeline.models.masked_lm import LOGITS
    from pipeline.teacher import truncation

    return truncation.truncate(
        outputs[LOGITS],
        batch[records.MASKED_LM_IDS],
        truncation_factor=workload.cached_ids,
        temperatures=_TEMPERATURES,
    )


def _random_inputs(
    workload: Workload, config: EncoderConfig, batch_size: int, random: np.random.Generator
) -> Arrays:
    """Returns inputs without padding, with one segment or two of half the length."""
    shape = (batch_size, workload.max_seq_length)
    ids = random.integers(0, config.vocab_size, shape, dtype=np.int32)
    second = np.arange(shape[1]) >= (shape[1] + 1) // 2
    segments = np.broadcast_to(second & (config.type_vocab_size > 1), shape)
    order = random.permuted(np.broadcast_to(np.arange(shape[1]), shape), axis=1)
    positions = np.sort(order[:, : workload.max_predictions_per_seq], axis=1)
    return {
        records.INPUT_IDS: ids,
        records.INPUT_MASK: np.ones(shape, np.int32),
        records.SEGMENT_IDS: segments.astype(np.int32),
        records.MASKED_LM_POSITIONS: positions.astype(np.int32),
    }


def _random_labels(workload: Workload, size: int, random: np.random.Generator) -> np.ndarray:
    shape = (size, workload.max_predictions_per_seq)
    return random.integers(0, workload.student.vocab_size, shape, dtype=np.int32)


def step_batch(workload: Workload, batch_size: int) -> tuple[Arrays, Arrays]:
    """Returns inputs and targets in the format of `pipeline.distill.batches`, always the same.

    The targets include those of a cache unless the teacher is live.
    """
    random = np.random.default_rng(_SEED)
    inputs = _random_inputs(workload, workload.student, batch_size, random)
    labels = _random_labels(workload, batch_size, random)
    targets = {
        records.MASKED_LM_IDS: labels,
        records.MASKED_LM_WEIGHTS: np.ones(labels.shape, np.float32),
    }
    if workload.live:
        return inputs, targets
    for name, shape in _cached_shapes(workload).items():
        shape = (*(labels.shape if name != records.EMBEDDING else labels.shape[:1]), *shape)
        targets[name] = random.normal(size=shape).astype(np.float32)
    if not workload.holds_states:
        shape, count = (*labels.shape, workload.cached_ids), workload.student.vocab_size
        # Consecutive ids from a random one, and logits that decrease from 0.
        first = random.integers(0, count, (*labels.shape, 1))
        targets[records.TOPK_IDS] = ((first + np.arange(shape[-1])) % count).astype(np.int32)
        logits = np.linspace(0.0, -8.0, shape[-1], dtype=np.float32)
        targets[records.TOPK_LOGITS] = np.broadcast_to(logits, shape).copy()
        tails = (*labels.shape, len(_TEMPERATURES))
        targets[records.LOG_TAIL_MASSES] = np.full(tails, np.log(0.05), np.float32)
    return inputs, targets


def _cached_shapes(workload: Workload) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the states in a cache, per position or, for embeddings, per example."""
    size, shapes = workload.teacher.hidden_size, {}
    if workload.holds_states:
        shapes[records.HEAD_STATES] = (workload.teacher.embedding_width,)
    if workload.hidden_groups:
        shapes[records.HIDDEN_STATES] = (len(workload.hidden_groups), size)
    if workload.config.embedding_pooling is not None:
        shapes[records.EMBEDDING] = (size,)
    return shapes


def teacher_batch(workload: Workload, batch_size: int) -> Arrays:
    """Returns a batch in the format of `pipeline.teacher.forward.build_batch`, always the same."""
    random = np.random.default_rng(_SEED)
    inputs = _random_inputs(workload, workload.teacher, batch_size, random)
    return {**inputs, records.MASKED_LM_IDS: _random_labels(workload, batch_size, random)}


def step_flops(workload: Workload) -> float:
    """Returns the operations of a training step for one example, with those of a live teacher."""
    teacher = workload.teacher if workload.live else None
    return flops.step_flops(
        workload.student,
        teacher,
        workload.max_seq_length,
        workload.num_positions,
        embeds=workload.config.embedding_pooling is not None,
    )


def teacher_flops(workload: Workload) -> float:
    """Returns the operations of the teacher's forward pass in capture for one example."""
    return flops.forward_flops(
        workload.teacher, workload.max_seq_length, workload.max_predictions_per_seq
    )


# The operations of each part for one example.
FLOPS: Mapping[str, Callable[[Workload], float]] = {"step": step_flops, "teacher": teacher_flops}
