"""The student with its objective, as a Keras model that `fit` and `evaluate` know to run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from data_specs import records
from pipeline.base.seeding import hash64
from pipeline.distill import losses as loss_functions
from pipeline.distill.metrics import CalibrationError
from pipeline.distill.objective import Objective, mean_over_positions
from pipeline.distill.settings import (
    ATTENTION,
    ATTENTION_MSE,
    HIDDEN,
    HIDDEN_COSINE,
    HIDDEN_COSINE_MASKED,
    LOSS_NEEDS,
    LOSS_SHARES,
    MASKED_LM,
    TOPK,
)
from pipeline.models.encoder import ATTENTIONS
from pipeline.models.layer_groups import mean_attention, mean_state
from pipeline.models.masked_lm import LOGITS, MaskedLM, gather_positions

STUDENT = "student"
TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where a batch's losses are computed; P is L where they go over all tokens.

    Attributes:
        targets: as `Objective.per_position` takes them.
        masked: float32 [B, P], 1 at real masked positions.
        real: float32 [B, P], 1 where the distributions are compared.
    """

    targets: Mapping[str, Any]
    masked: Any
    real: Any


def _spread_over_tokens(inputs: Mapping[str, Any], targets: Mapping[str, Any]) -> _Places:
    """Puts the labels of the masked positions where they stand among all tokens.

    Example: labels [7, 9] at positions [1, 3] of 5 tokens become [0, 7, 0, 9, 0].
    """
    tokens = ops.arange(ops.shape(inputs[records.INPUT_IDS])[1], dtype="int32")
    positions = ops.cast(inputs[records.MASKED_LM_POSITIONS], "int32")
    here = ops.equal(ops.expand_dims(positions, -1), tokens)
    weights = ops.expand_dims(targets[records.MASKED_LM_WEIGHTS], -1)
    here = ops.cast(here, "float32") * weights
    labels = ops.expand_dims(targets[records.MASKED_LM_IDS], -1)
    return _Places(
        {records.MASKED_LM_IDS: ops.sum(ops.cast(here, labels.dtype) * labels, axis=1)},
        masked=ops.sum(here, axis=1),
        real=ops.cast(inputs[records.INPUT_MASK], "float32"),
    )


def _add_mean(metric: keras.metrics.Mean, values: Any, weights: Any) -> Any:
    """Adds positions to a metric and returns their mean."""
    mean = mean_over_positions(values, weights)
    # Given [B, P], Keras weighs with the mean over P, which changes with the batch.
    metric.update_state(mean, sample_weight=ops.sum(weights))
    return mean


class Distiller(keras.Model):
    """Trains a student by an objective.

    Called with a batch's inputs it returns what the student, and the live teacher
    if there is one, say of it; `compute_loss` compares these with each other and
    with the targets. In training only losses that have a weight are computed, in
    evaluation all that can be, and what people read.

    Args:
        student: takes a batch's inputs.
        objective: what to make small.
        teacher: a live one, which stays as it is; None where the cache holds all.
        teacher_hidden_size: of the states that are compared with the student's; a
            student of another size gets a learned projection for each layer group.
        num_steps: updates in all, over which weights of losses change.
        steps_per_update: calls of the optimizer that make one update.
        seed: of the projections' first weights.
    """

    def __init__(
        self,
        student: MaskedLM,
        objective: Objective,
        *,
        teacher: MaskedLM | None = None,
        teacher_hidden_size: int | None = None,
        num_steps: int = 1,
        steps_per_update: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(name="distiller")
        self.student = student
        self.objective = objective
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self._means = {name: keras.metrics.Mean(name=name) for name in objective.supported}
        guesses = ["masked_lm_accuracy"]
        if objective.has_teacher:
            guesses += ["teacher_agreement", "teacher_accuracy"]
        self._guesses = {name: keras.metrics.Mean(name=name) for name in guesses}
        self._calibration = CalibrationError()
        self._num_steps = num_steps
        self._steps_per_update = steps_per_update
        self._step = None
        if objective.schedules:
            self._step = self.add_weight(
                name="step", shape=(), dtype="int32", initializer="zeros", trainable=False
            )
        self.projections = self._make_projections(teacher_hidden_size, seed)
        self.built = True

    def _make_projections(self, size: int | None, seed: int) -> list[keras.layers.Layer]:
        """Returns a projection for each layer group whose states differ in size."""
        own_size = self.student.config.hidden_size
        compared = {HIDDEN_COSINE, HIDDEN_COSINE_MASKED} & set(self.objective.weights)
        if not compared or size is None or size == own_size:
            return []
        projections = []
        for group in self.objective.hidden_groups:
            stream = hash64(seed, "hidden projection", str(group)) % 2**31
            projection = keras.layers.Dense(
                size,
                use_bias=False,
                kernel_initializer=keras.initializers.LecunNormal(seed=stream),
                name=f"hidden_projection_{group.student}",
            )
            projection.build((None, None, own_size))
            projections.append(projection)
        return projections

    @property
    def state_variables(self) -> list[keras.Variable]:
        """What changes in training without being trained: frozen weights, seeds, counters."""
        fixed = () if self.teacher is None else self.teacher.variables
        ids = {id(variable) for variable in fixed}
        return [one for one in self.non_trainable_variables if id(one) not in ids]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Returns `student` and, with a live teacher, `teacher`: activations by name."""
        if self.objective.loss_positions == "all":
            inputs = {k: v for k, v in inputs.items() if k != records.MASKED_LM_POSITIONS}
        said = {STUDENT: self._needed(self.student.activations(inputs, training=training))}
        if self.teacher is not None:
            activations = self._needed(self.teacher.activations(inputs, training=False))
            said[TEACHER] = keras.tree.map_structure(ops.stop_gradient, activations)
        return said

    def _needed(self, activations: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves out what nothing is compared with: maps are large."""
        needs = {LOSS_NEEDS[name] for name in self.objective.weights}
        names = {LOGITS}
        names |= {records.HIDDEN_STATES} if HIDDEN in needs else set()
        names |= {ATTENTIONS} if ATTENTION in needs else set()
        return {name: activations[name] for name in names}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the objective's mean over the batch's real positions.

        In training, where the batch is a chunk of a group, its part of the mean over
        the group's; what is reported are means over positions either way.
        """
        del sample_weight
        masked = y[records.MASKED_LM_WEIGHTS]
        places = _Places(y, masked, masked)
        if self.objective.loss_positions == "all":
            places = _spread_over_tokens(x, y)
        names = self.objective.weights if training else self.objective.supported
        logits, teacher_logits = y_pred[STUDENT][LOGITS], None
        if self.teacher is not None:
            teacher_logits = y_pred[TEACHER][LOGITS]
        values = self.objective.per_position(logits, places.targets, names, teacher_logits)
        means = {}
        for name, value in values.items():
            weights = places.masked if name == MASKED_LM else places.real
            means[name] = _add_mean(self._means[name], value, weights)
        means.update(self._layer_losses(x, y, y_pred, names))
        if not training:
            self._update_guesses(places, logits, teacher_logits)
        elif LOSS_SHARES in y:
            shares = y[LOSS_SHARES][0]
            means = {name: mean * shares[self._share(name)] for name, mean in means.items()}
        return self.objective.total(means, self._progress(training))

    def _share(self, name: str) -> int:
        """Returns which of `LOSS_SHARES` a loss has: of masked positions, tokens or pairs."""
        if name == ATTENTION_MSE:
            return 2
        everywhere = self.objective.loss_positions == "all" and LOSS_NEEDS[name] == TOPK
        return 1 if everywhere or name == HIDDEN_COSINE else 0

    def _progress(self, training: bool) -> Any:
        """Returns the part of all updates that is done, and counts a call in training."""
        if self._step is None:
            return 0.0
        updates = ops.floor_divide(self._step, self._steps_per_update)
        progress = ops.cast(updates, "float32") / float(max(1, self._num_steps - 1))
        if training:
            self._step.assign(self._step + 1)
        return ops.minimum(progress, 1.0)

    def _layer_losses(
        self, inputs: Mapping[str, Any], targets: Mapping[str, Any], said: Any, names: Any
    ) -> dict[str, Any]:
        """Returns the means of the losses that compare layers, and counts them."""
        means = {}
        for name in names:
            if LOSS_NEEDS[name] not in (HIDDEN, ATTENTION):
                continue
            if name == ATTENTION_MSE:
                mask = ops.cast(inputs[records.INPUT_MASK], "float32")
                count = ops.sum(ops.square(ops.sum(mask, axis=1)))
                means[name] = self._attention_mse(said, mask)
            else:
                over_masked = name == HIDDEN_COSINE_MASKED
                weights = targets[records.MASKED_LM_WEIGHTS]
                if not over_masked:
                    weights = ops.cast(inputs[records.INPUT_MASK], "float32")
                count = ops.sum(weights)
                pairs = self._hidden_pairs(inputs, targets, said, over_masked=over_masked)
                means[name] = sum(
                    mean_over_positions(loss_functions.hidden_cosine(*pair), weights)
                    for pair in pairs
                ) / len(pairs)
            self._means[name].update_state(means[name], sample_weight=count)
        return means

    def _attention_mse(self, said: Mapping[str, Any], mask: Any) -> Any:
        groups = self.objective.attention_groups
        return sum(
            loss_functions.attention_mse(
                mean_attention(said[TEACHER][ATTENTIONS], group.teacher),
                said[STUDENT][ATTENTIONS][group.student - 1],
                mask,
            )
            for group in groups
        ) / len(groups)

    def _hidden_pairs(
        self,
        inputs: Mapping[str, Any],
        targets: Mapping[str, Any],
        said: Mapping[str, Any],
        *,
        over_masked: bool,
    ) -> Sequence[tuple[Any, Any]]:
        """Returns the teacher's and the student's state of each layer group."""
        objective, pairs = self.objective, []
        for number, group in enumerate(objective.hidden_groups):
            own = said[STUDENT][records.HIDDEN_STATES][group.student]
            if over_masked and objective.hidden_cached:
                index = objective.cached_groups.index(group.teacher)
                other = targets[records.HIDDEN_STATES][:, :, index]
            else:
                other = mean_state(said[TEACHER][records.HIDDEN_STATES], group.teacher)
                if over_masked:
                    other = gather_positions(other, inputs[records.MASKED_LM_POSITIONS])
            if over_masked:
                own = gather_positions(own, inputs[records.MASKED_LM_POSITIONS])
            own = ops.cast(own, "float32")
            pairs.append((other, self.projections[number](own) if self.projections else own))
        return pairs

    def _update_guesses(self, places: _Places, logits: Any, teacher_logits: Any) -> None:
        labels, weights = places.targets[records.MASKED_LM_IDS], places.masked
        guess = ops.cast(ops.argmax(logits, axis=-1), labels.dtype)
        right = ops.cast(ops.equal(guess, labels), "float32")
        _add_mean(self._guesses["masked_lm_accuracy"], right, weights)
        if self.objective.has_teacher:
            if self.objective.topk_cached:
                # Of the tokens that the student knows: a guess that it lacks has moved behind.
                first = places.targets[records.TOPK_IDS][..., 0]
            else:
                first = ops.cast(ops.argmax(teacher_logits, axis=-1), labels.dtype)
            for name, other in (("teacher_agreement", guess), ("teacher_accuracy", labels)):
                equal = ops.cast(ops.equal(first, other), "float32")
                _add_mean(self._guesses[name], equal, weights)
        confidence = ops.exp(ops.max(logits, axis=-1) - ops.logsumexp(logits, axis=-1))
        self._calibration.update_state(confidence, right, sample_weight=weights)

    def set_updates(self, updates: int) -> None:
        """Sets what counts calls, of which an update may take another number than before."""
        calls = updates * self._steps_per_update
        self.optimizer.variables[0].assign(calls)
        if self._step is not None:
            self._step.assign(calls)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns little at each step: `training_report` reads all means when asked."""
        name = next(iter(self.objective.weights))
        return {name: self._means[name].result()}

    def _read(self, names: Any) -> dict[str, float]:
        means = {name: float(self._means[name].result()) for name in names}
        return {"loss": float(self.objective.total(means, self._progress(False))), **means}

    def training_report(self) -> dict[str, float]:
        """Returns the losses since the last reset: their sum and each by name."""
        return self._read(self.objective.weights)

    def evaluation_report(self) -> dict[str, float]:
        """Returns what the last `evaluate` measured.

        `loss`, each supported loss, `masked_lm_accuracy`, `masked_lm_perplexity`
        (e to the mean −log q of the label), `calibration_error`, and with a
        teacher `teacher_agreement` (same first guess) and `teacher_accuracy`; the
        teacher's first guess is the first among the tokens that the student knows.
        """
        report = self._read(self.objective.supported)
        report["masked_lm_perplexity"] = math.exp(min(report[MASKED_LM], 700.0))
        report.update({name: float(mean.result()) for name, mean in self._guesses.items()})
        report["calibration_error"] = float(self._calibration.result())
        return report
