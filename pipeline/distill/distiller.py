"""The student with its objective, as a Keras model for `fit` and `evaluate`."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from data_specs import records
from pipeline.base.seeding import hash64
from pipeline.distill import step_times
from pipeline.distill.cached_head import CachedHead
from pipeline.distill.comparison import (
    ACTIVATIONS,
    CONFIDENCE,
    FIRST,
    GUESS,
    STUDENT,
    TEACHER,
    BatchComparison,
    Vocabulary,
    mean_over_weights,
)
from pipeline.distill.losses.base import (
    AVERAGES,
    HIDDEN,
    LOSS_SHARES,
    OF_ATTENTION,
    OF_POSITIONS,
)
from pipeline.distill.losses.masked_lm import MaskedLMLoss
from pipeline.distill.objective import Objective
from pipeline.distill.step_times import InputClock
from pipeline.models.embeddings import embed
from pipeline.models.masked_lm import LOGITS, MaskedLM


class CalibrationError(keras.metrics.Metric):
    """Expected calibration error of the student's first guess (Guo et al., 2017).

    Positions are sorted into bins of equal width by the probability of the
    first guess; in each the mean probability is compared with the share of
    right guesses: ECE = Σ_bins (n_bin / n) · |accuracy − confidence|.
    """

    def __init__(self, num_bins: int = 15, name: str = "calibration_error") -> None:
        super().__init__(name=name)
        self.num_bins = num_bins
        # For each bin: positions, sum of confidences, right guesses.
        self.bins = self.add_variable((num_bins, 3), initializer="zeros", name="bins")

    def update_state(self, confidence: Any, correct: Any, sample_weight: Any) -> None:
        """Adds positions: all arguments are float32 [B, P].

        Args:
            confidence: the probability of the first guess.
            correct: 1 where it is the label.
            sample_weight: 0 at padding.
        """
        index = ops.cast(ops.floor(confidence * self.num_bins), "int32")
        index = ops.clip(index, 0, self.num_bins - 1)
        membership = ops.one_hot(index, self.num_bins) * ops.expand_dims(sample_weight, -1)
        columns = ops.stack([ops.ones_like(confidence), confidence, correct], axis=-1)
        membership = ops.transpose(ops.reshape(membership, (-1, self.num_bins)))
        self.bins.assign_add(ops.matmul(membership, ops.reshape(columns, (-1, 3))))

    def result(self) -> Any:
        """Returns the error, from 0 to 1; 0 without positions."""
        gaps = ops.abs(self.bins[:, 2] - self.bins[:, 1])
        return ops.sum(gaps) / ops.maximum(ops.sum(self.bins[:, 0]), 1.0)


def _make_means(names: Iterable[str]) -> dict[str, keras.metrics.Mean]:
    return {name: keras.metrics.Mean(name=name) for name in names}


class Distiller(keras.Model):
    """Trains a student by an objective; its masked-LM head stays where no loss depends on it.

    Called with a batch's inputs it returns the activations of the student and of the live
    teacher, if there is one; `compute_loss` compares these with each other and with the
    targets. Training computes the losses that have a weight, evaluation all that it reports.

    Args:
        student: takes a batch's inputs.
        objective: the weighted losses.
        teacher: a live one, which stays as it is; None where the cache holds all.
        cached_head: of a cache of head states.
        teacher_hidden_size: of the states that are compared with the student's; a
            student of another size gets a learned projection for each layer group.
        teacher_embedding_size: of the embeddings, likewise.
        num_steps: updates in all, over which weights of losses change.
        steps_per_update: calls of the optimizer that make one update.
        seed: of the projections' first weights.
        block_size: the most positions whose logits are computed at once, see
            `position_blocks`; None for all.
    """

    def __init__(
        self,
        student: MaskedLM,
        objective: Objective,
        *,
        teacher: MaskedLM | None = None,
        cached_head: CachedHead | None = None,
        teacher_hidden_size: int | None = None,
        teacher_embedding_size: int | None = None,
        num_steps: int = 1,
        steps_per_update: int = 1,
        seed: int = 0,
        block_size: int | None = None,
    ) -> None:
        super().__init__(name="distiller")
        self.student = student
        self.objective = objective
        self.teacher = teacher
        self.cached_head = cached_head
        if teacher is not None:
            teacher.trainable = False
        if not objective.trains_head:
            # What has no gradient would still decay on JAX.
            student.head.trainable = False
        self._means = _make_means(objective.comparison.reported(objective.weights))
        of_teacher = ["teacher_agreement", "teacher_accuracy"]
        guesses = ["masked_lm_accuracy", *of_teacher * objective.comparison.has_teacher]
        self._guesses = _make_means(guesses)
        self._calibration = CalibrationError()
        self._num_steps = num_steps
        self._steps_per_update = steps_per_update
        self._block_size = block_size
        self._step = None
        if objective.schedules:
            kind = {"dtype": "int32", "initializer": "zeros", "trainable": False}
            self._step = self.add_weight(name="step", shape=(), **kind)
        self.projections = self._make_projections(teacher_hidden_size, seed)
        self.input_clock = InputClock()
        self.embedding_projection = None
        if objective.compares_embeddings and teacher_embedding_size != student.config.hidden_size:
            self.embedding_projection = self._projection(
                "embedding_projection",
                teacher_embedding_size,
                use_bias=True,
                seed=hash64(seed, "embedding projection", ""),
            )
        self.built = True

    def _make_projections(self, size: int | None, seed: int) -> dict[int, keras.layers.Layer]:
        """Returns a projection by the student's layer, where hidden states differ in size."""
        own_size, comparison = self.student.config.hidden_size, self.objective.comparison
        if size is None or size == own_size:
            return {}
        projections: dict[int, keras.layers.Layer] = {}
        for group in comparison.groups(HIDDEN):
            if group.student not in projections:
                projections[group.student] = self._projection(
                    f"hidden_projection_{group.student}",
                    size,
                    use_bias=comparison.projects_with_bias(group.student),
                    seed=hash64(seed, "hidden projection", str(group)),
                )
        return projections

    def _projection(self, name: str, size: int, *, use_bias: bool, seed: int) -> keras.layers.Layer:
        """Returns a learned projection from the student's hidden size to another."""
        initializer = keras.initializers.LecunNormal(seed=seed % 2**31)
        layer = keras.layers.Dense(
            size, use_bias=use_bias, kernel_initializer=initializer, name=name
        )
        layer.build((None, None, self.student.config.hidden_size))
        return layer

    @property
    def state_variables(self) -> list[keras.Variable]:
        """The variables that change without being trained, and frozen weights."""
        fixed = (one.variables for one in (self.teacher, self.cached_head) if one is not None)
        ids = {id(variable) for variable in itertools.chain(*fixed)}
        return [one for one in self.non_trainable_variables if id(one) not in ids]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Returns `student` and, with a live teacher, `teacher`: activations by name."""
        if self.objective.comparison.loss_positions == "all":
            inputs = {k: v for k, v in inputs.items() if k != records.MASKED_LM_POSITIONS}
        activations = {STUDENT: self._compared(self.student, inputs, training)}
        if self.teacher is not None:
            of_teacher = self._compared(self.teacher, inputs, False)
            activations[TEACHER] = keras.tree.map_structure(ops.stop_gradient, of_teacher)
        return activations

    def _compared(
        self, model: MaskedLM, inputs: Mapping[str, Any], training: bool | None
    ) -> dict[str, Any]:
        """Returns a model's activations that losses compare."""
        needs = self.objective.needs
        wanted = [name for need in OF_ATTENTION if need in needs for name in ACTIVATIONS[need]]
        found = model.activations(inputs, training=training, wanted=wanted)
        outputs = LOGITS if self._block_size is None else records.HEAD_STATES
        names = [outputs, *(ACTIVATIONS[HIDDEN] if HIDDEN in needs else ()), *wanted]
        return {name: found[name] for name in names}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the weighted sum of the losses' means over the batch.

        For a microbatch in training it is the microbatch's part of the mean over its group.
        The metrics are means over what is in the batch in both cases.
        """
        del sample_weight
        comparison = self.objective.comparison
        activations = self._with_states(y_pred, y) if comparison.from_states else y_pred
        batch = BatchComparison(
            comparison,
            x,
            y,
            activations,
            self.projections,
            self._vocabulary(training),
            self._embeddings(x, y, training) if self.objective.compares_embeddings else None,
        )
        shares = y[LOSS_SHARES][0] if training and LOSS_SHARES in y else None
        losses = comparison.losses(self.objective.weights if training else self._means)
        of_positions = [loss for loss in losses if loss.needs in OF_POSITIONS]
        at_positions = batch.at_positions(of_positions, with_guesses=not training)
        measured, means = batch.means(losses, at_positions), {}
        for loss in losses:
            mean, count = measured[loss.name]
            # Given [B, P], Keras weighs with the mean over P, which changes with the batch.
            self._means[loss.name].update_state(mean, sample_weight=count)
            means[loss.name] = mean
            if shares is not None:
                means[loss.name] *= shares[AVERAGES.index(comparison.over(loss))]
        if not training:
            self._update_guesses(batch, at_positions)
        return self.objective.total(means, self._progress(training))

    def _embeddings(self, x: Any, y: Any, training: bool) -> dict[str, Any]:
        """Returns both models' embeddings of the inputs before masking."""
        comparison, labels = self.objective.comparison, y[records.MASKED_LM_IDS]
        student = embed(self.student, x, labels, comparison.pooling, training)
        if self.embedding_projection is not None:
            student = self.embedding_projection(student)
        if comparison.embedding_cached:
            return {STUDENT: student, TEACHER: y[records.EMBEDDING]}
        teacher = embed(self.teacher, x, labels, comparison.pooling, False)
        return {STUDENT: student, TEACHER: ops.stop_gradient(teacher)}

    def _vocabulary(self, training: bool) -> Vocabulary | None:
        if self._block_size is None:
            return None
        is_cached = self.objective.comparison.from_states
        teacher = self.cached_head if is_cached else self.teacher
        return Vocabulary(self.student, teacher, self._block_size, recompute=training)

    def _with_states(
        self, activations: Mapping[str, Mapping[str, Any]], targets: Mapping[str, Any]
    ) -> dict[str, Mapping[str, Any]]:
        """Returns activations with those of the teacher that its cached head states give."""
        states = targets[records.HEAD_STATES]
        output = {records.HEAD_STATES: states}
        if self._block_size is None:
            head = self.cached_head
            logits = head.vocabulary_logits(states, *head.output_layer())
            output = {LOGITS: ops.stop_gradient(logits)}
        return {**activations, TEACHER: {**activations.get(TEACHER, {}), **output}}

    def _progress(self, training: bool) -> Any:
        """Returns the fraction of all updates that is done, and counts a call in training."""
        if self._step is None:
            return 0.0
        updates = ops.floor_divide(self._step, self._steps_per_update)
        progress = ops.cast(updates, "float32") / float(max(1, self._num_steps - 1))
        if training:
            self._step.assign(self._step + 1)
        return ops.minimum(progress, 1.0)

    def _update_guesses(self, batch: BatchComparison, guesses: Mapping[str, Any]) -> None:
        guess = guesses[GUESS]
        correct = ops.cast(ops.equal(guess, batch.labels), "float32")
        hits = {"masked_lm_accuracy": correct}
        if FIRST in guesses:
            first = guesses[FIRST]
            hits["teacher_agreement"] = ops.cast(ops.equal(first, guess), "float32")
            hits["teacher_accuracy"] = ops.cast(ops.equal(first, batch.labels), "float32")
        for name, values in hits.items():
            mean = mean_over_weights(values, batch.weights)
            self._guesses[name].update_state(mean, sample_weight=ops.sum(batch.weights))
        self._calibration.update_state(guesses[CONFIDENCE], correct, sample_weight=batch.weights)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras's function of a step, in which `input_clock` runs while it waits."""
        if self.train_function is None or force:
            super().make_train_function(force)
            made = step_times.time_inputs(self.train_function, self.train_step, self.input_clock)
            self.train_function = made
        return self.train_function

    def set_updates(self, updates: int) -> None:
        """Sets the counters of calls; the number of calls in an update may have changed."""
        calls = updates * self._steps_per_update
        self.optimizer.variables[0].assign(calls)
        if self._step is not None:
            self._step.assign(calls)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns one mean at each step; `training_report` reads all of them."""
        name = next(iter(self.objective.weights))
        return {name: self._means[name].result()}

    def _read(self, names: Iterable[str]) -> dict[str, float]:
        """Returns the sum of the losses since the last reset, and each by name."""
        means = {name: float(self._means[name].result()) for name in names}
        return {"loss": float(self.objective.total(means, self._progress(False))), **means}

    def training_report(self) -> dict[str, float]:
        """Returns the losses since the last reset: their sum and each by name."""
        return self._read(self.objective.weights)

    def evaluation_report(self) -> dict[str, float]:
        """Returns the metrics of the last `evaluate`.

        `loss`, each reported loss, `masked_lm_accuracy`, `masked_lm_perplexity`
        (e to the mean −log q of the label), `calibration_error`, and with a
        teacher `teacher_agreement` (same first guess) and `teacher_accuracy`; the
        teacher's first guess is the first among the tokens that the student knows.
        """
        report = self._read(self._means)
        report["masked_lm_perplexity"] = math.exp(min(report[MaskedLMLoss.name], 700.0))
        report.update({name: float(mean.result()) for name, mean in self._guesses.items()})
        report["calibration_error"] = float(self._calibration.result())
        return report
