"""The Keras model that trains and evaluates a student with its objective."""

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
    PREDICTION,
    STUDENT,
    TEACHER,
    BatchComparison,
    Vocabulary,
    mean_over_weights,
)
from pipeline.distill.losses.base import (
    ATTENTION_NEEDS,
    AVERAGES,
    HIDDEN,
    LOSS_SHARES,
    POSITION_NEEDS,
)
from pipeline.distill.losses.masked_lm import MaskedLMLoss
from pipeline.distill.objective import Objective
from pipeline.distill.step_times import InputClock
from pipeline.models.embeddings import embed
from pipeline.models.masked_lm import LOGITS, MaskedLM


class CalibrationError(keras.metrics.Metric):
    """Expected calibration error of the student's top-1 prediction (Guo et al., 2017).

    Positions are sorted into bins of equal width by the probability of the top-1 prediction.
    In each bin the mean probability is compared with the share of correct predictions:
    ECE = Σ_bins (n_bin / n) · |accuracy − confidence|.
    """

    def __init__(self, num_bins: int = 15, name: str = "calibration_error") -> None:
        super().__init__(name=name)
        self.num_bins = num_bins
        # Columns of a bin: positions, sum of confidences, correct predictions.
        self.bins = self.add_variable((num_bins, 3), initializer="zeros", name="bins")

    def update_state(self, confidence: Any, correct: Any, sample_weight: Any) -> None:
        """Adds positions to their bins. All arguments are float32 [B, P].

        Args:
            confidence: the probability of the top-1 prediction.
            correct: 1 where the top-1 prediction is the label, else 0.
            sample_weight: 1 at real positions, 0 at padding.
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
    """Trains a student by an objective.

    `call` maps a batch's inputs to the activations of the student and of the live teacher.
    `compute_loss` compares these with each other and with the targets. Training computes the
    losses that have a weight, evaluation all losses that it reports. The masked-LM head is
    frozen if no loss depends on it.

    Args:
        student: the student, which takes a batch's inputs.
        objective: the weighted losses.
        teacher: a live teacher, which is not trained; None if the cache holds all targets.
        cached_head: the output layer of a cache of head states; None for another cache.
        teacher_hidden_size: the size of the hidden states that the student's are compared
            with. A student of another size gets a learned projection for each layer group.
        teacher_embedding_size: the same for embeddings.
        num_steps: the total number of updates, over which weights of losses change.
        steps_per_update: the number of optimizer calls that make one update.
        seed: the seed of the projections' initial weights.
        block_size: the maximum number of positions whose logits are computed at once; see
            `position_blocks`. None computes all at once.
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
            # On JAX, weight decay would change the head even without a gradient.
            student.head.trainable = False
        self._means = _make_means(objective.comparison.reported_losses(objective.weights))
        teacher_metrics = ["teacher_agreement", "teacher_accuracy"]
        predictions = ["masked_lm_accuracy", *teacher_metrics * objective.comparison.has_teacher]
        self._predictions = _make_means(predictions)
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
        """Returns projections by the student's layer; none if hidden states have equal sizes."""
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
        """Variables that no gradient changes, except those of the teacher and the cached head."""
        fixed_layers = [layer for layer in (self.teacher, self.cached_head) if layer is not None]
        fixed = itertools.chain(*(layer.variables for layer in fixed_layers))
        ids = {id(variable) for variable in fixed}
        return [var for var in self.non_trainable_variables if id(var) not in ids]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Returns activations by name, under `student` and, with a live teacher, `teacher`."""
        if self.objective.comparison.loss_positions == "all":
            inputs = {k: v for k, v in inputs.items() if k != records.MASKED_LM_POSITIONS}
        activations = {STUDENT: self._compared_activations(self.student, inputs, training)}
        if self.teacher is not None:
            from_teacher = self._compared_activations(self.teacher, inputs, False)
            activations[TEACHER] = keras.tree.map_structure(ops.stop_gradient, from_teacher)
        return activations

    def _compared_activations(
        self, model: MaskedLM, inputs: Mapping[str, Any], training: bool | None
    ) -> dict[str, Any]:
        """Returns the activations of a model that losses compare."""
        needs = self.objective.needs
        wanted = [name for need in ATTENTION_NEEDS if need in needs for name in ACTIVATIONS[need]]
        activations = model.activations(inputs, training=training, wanted=wanted)
        outputs = LOGITS if self._block_size is None else records.HEAD_STATES
        names = [outputs, *(ACTIVATIONS[HIDDEN] if HIDDEN in needs else ()), *wanted]
        return {name: activations[name] for name in names}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the weighted sum of the losses' means over the batch.

        In training with microbatches it returns the microbatch's part of the mean over its
        group. The metrics are always means over the batch.
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
        of_positions = [loss for loss in losses if loss.needs in POSITION_NEEDS]
        at_positions = batch.at_positions(of_positions, with_predictions=not training)
        measured, means = batch.means(losses, at_positions), {}
        for loss in losses:
            mean, count = measured[loss.name]
            # Given values [B, P], Keras would weight each batch by its mean over P, not by its
            # count.
            self._means[loss.name].update_state(mean, sample_weight=count)
            means[loss.name] = mean
            if shares is not None:
                means[loss.name] *= shares[AVERAGES.index(comparison.averaged_over(loss))]
        if not training:
            self._update_predictions(batch, at_positions)
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
        """Adds the teacher's activations that follow from its cached head states."""
        states = targets[records.HEAD_STATES]
        output = {records.HEAD_STATES: states}
        if self._block_size is None:
            head = self.cached_head
            logits = head.vocabulary_logits(states, *head.output_layer())
            output = {LOGITS: ops.stop_gradient(logits)}
        return {**activations, TEACHER: {**activations.get(TEACHER, {}), **output}}

    def _progress(self, training: bool) -> Any:
        """Returns min(1, u / (n − 1)) for u finished updates of n.

        In training it also increments the call counter.
        """
        if self._step is None:
            return 0.0
        updates = ops.floor_divide(self._step, self._steps_per_update)
        progress = ops.cast(updates, "float32") / float(max(1, self._num_steps - 1))
        if training:
            self._step.assign(self._step + 1)
        return ops.minimum(progress, 1.0)

    def _update_predictions(self, batch: BatchComparison, predictions: Mapping[str, Any]) -> None:
        prediction = predictions[PREDICTION]
        correct = ops.cast(ops.equal(prediction, batch.labels), "float32")
        hits = {"masked_lm_accuracy": correct}
        if FIRST in predictions:
            first = predictions[FIRST]
            hits["teacher_agreement"] = ops.cast(ops.equal(first, prediction), "float32")
            hits["teacher_accuracy"] = ops.cast(ops.equal(first, batch.labels), "float32")
        for name, values in hits.items():
            mean = mean_over_weights(values, batch.weights)
            self._predictions[name].update_state(mean, sample_weight=ops.sum(batch.weights))
        self._calibration.update_state(
            predictions[CONFIDENCE], correct, sample_weight=batch.weights
        )

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras's function of a training step, with its input timed by `input_clock`."""
        if self.train_function is None or force:
            super().make_train_function(force)
            timed = step_times.time_inputs(self.train_function, self.train_step, self.input_clock)
            self.train_function = timed
        return self.train_function

    def set_updates(self, updates: int) -> None:
        """Sets the counters of calls from the number of updates.

        The number of calls in an update may differ from that of the run's beginning.
        """
        calls = updates * self._steps_per_update
        self.optimizer.variables[0].assign(calls)
        if self._step is not None:
            self._step.assign(calls)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the mean of one loss for Keras; `training_report` reads all means."""
        name = next(iter(self.objective.weights))
        return {name: self._means[name].result()}

    def _read(self, names: Iterable[str]) -> dict[str, float]:
        """Returns the weighted sum of the losses since the last reset, and each loss by name."""
        means = {name: float(self._means[name].result()) for name in names}
        return {"loss": float(self.objective.total(means, self._progress(False))), **means}

    def training_report(self) -> dict[str, float]:
        """Returns the losses since the last reset: their weighted sum, and each by name."""
        return self._read(self.objective.weights)

    def evaluation_report(self) -> dict[str, float]:
        """Returns the metrics of the last `evaluate`.

        They are `loss`, each reported loss, `masked_lm_accuracy`, `masked_lm_perplexity`
        (e to the mean −log q of the label) and `calibration_error`. With a teacher they also
        include `teacher_agreement` (same top-1 token) and `teacher_accuracy`. The teacher's
        top-1 prediction is its most probable token among those that the student has.
        """
        report = self._read(self._means)
        report["masked_lm_perplexity"] = math.exp(min(report[MaskedLMLoss.name], 700.0))
        report.update({name: float(mean.result()) for name, mean in self._predictions.items()})
        report["calibration_error"] = float(self._calibration.result())
        return report
