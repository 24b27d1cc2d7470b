"""The student with its objective, as a Keras model that `fit` and `evaluate` know to run."""

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from data_specs import records
from pipeline.distill.metrics import CalibrationError
from pipeline.distill.objective import Objective, mean_over_positions


class Distiller(keras.Model):
    """Trains a student by an objective.

    Called with a batch's inputs it returns the student's logits at the masked
    positions, float32 [B, P, V]; `compute_loss` compares them with the targets.
    In training only losses that have a weight are computed, in evaluation all
    that the cache supports, and what people read.

    Args:
        student: takes a batch's inputs, returns logits.
        objective: what to make small.
    """

    def __init__(self, student: keras.Model, objective: Objective) -> None:
        super().__init__(name="distiller")
        self.student = student
        self.objective = objective
        self._means = {name: keras.metrics.Mean(name=name) for name in objective.supported}
        guesses = ["masked_lm_accuracy"]
        if objective.has_teacher:
            guesses += ["teacher_agreement", "teacher_accuracy"]
        self._guesses = {name: keras.metrics.Mean(name=name) for name in guesses}
        self._calibration = CalibrationError()
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the student's logits at the masked positions, float32 [B, P, V]."""
        return self.student(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the objective's mean over the batch's real masked positions."""
        del x, sample_weight
        weights = y[records.MASKED_LM_WEIGHTS]
        names = self.objective.weights if training else self.objective.supported
        values = self.objective.per_position(y_pred, y, names)
        means = {name: mean_over_positions(value, weights) for name, value in values.items()}
        count = ops.sum(weights)
        for name, mean in means.items():
            self._means[name].update_state(mean, sample_weight=count)
        if not training:
            self._update_guesses(y, y_pred, weights)
        return self.objective.total(means)

    def _update_guesses(self, targets: Mapping[str, Any], logits: Any, weights: Any) -> None:
        labels = targets[records.MASKED_LM_IDS]
        guess = ops.cast(ops.argmax(logits, axis=-1), labels.dtype)
        right = ops.cast(ops.equal(guess, labels), "float32")
        self._guesses["masked_lm_accuracy"].update_state(right, sample_weight=weights)
        if self.objective.has_teacher:
            # Of the tokens that the student knows: a guess that it lacks has moved behind.
            first = targets[records.TOPK_IDS][..., 0]
            for name, other in (("teacher_agreement", guess), ("teacher_accuracy", labels)):
                equal = ops.cast(ops.equal(first, other), "float32")
                self._guesses[name].update_state(equal, sample_weight=weights)
        confidence = ops.exp(ops.max(logits, axis=-1) - ops.logsumexp(logits, axis=-1))
        self._calibration.update_state(confidence, right, sample_weight=weights)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns little at each step: `training_report` reads all means when asked."""
        name = next(iter(self.objective.weights))
        return {name: self._means[name].result()}

    def _read(self, names: Any) -> dict[str, float]:
        means = {name: float(self._means[name].result()) for name in names}
        return {"loss": float(self.objective.total(means)), **means}

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
        report["masked_lm_perplexity"] = math.exp(min(report["masked_lm"], 700.0))
        report.update({name: float(mean.result()) for name, mean in self._guesses.items()})
        report["calibration_error"] = float(self._calibration.result())
        return report
