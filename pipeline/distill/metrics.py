"""What evaluation reports beside the losses."""

from typing import Any

import keras
from keras import ops


class CalibrationError(keras.metrics.Metric):
    """Expected calibration error of the student's first guess (Guo et al., 2017).

    Positions are sorted into bins of equal width by the probability of the
    first guess; in each the mean probability is compared with the share of
    right guesses: ECE = Σ_bins (n_bin / n) · |accuracy − confidence|.

    Args:
        num_bins: bins.
        name: the metric's name.
    """

    def __init__(self, num_bins: int = 15, name: str = "calibration_error") -> None:
        super().__init__(name=name)
        self.num_bins = num_bins
        # For each bin: positions, sum of confidences, right guesses.
        self.bins = self.add_variable((num_bins, 3), initializer="zeros", name="bins")

    def update_state(self, confidence: Any, correct: Any, sample_weight: Any) -> None:
        """Adds positions.

        Args:
            confidence: float32 [B, P], the probability of the first guess.
            correct: float32 [B, P], 1 where it is the label.
            sample_weight: float32 [B, P], 0 at padding.
        """
        index = ops.cast(ops.floor(confidence * self.num_bins), "int32")
        index = ops.clip(index, 0, self.num_bins - 1)
        membership = ops.one_hot(index, self.num_bins) * ops.expand_dims(sample_weight, -1)
        columns = ops.stack([ops.ones_like(confidence), confidence, correct], axis=-1)
        flat = (-1, self.num_bins), (-1, 3)
        added = ops.matmul(
            ops.transpose(ops.reshape(membership, flat[0])), ops.reshape(columns, flat[1])
        )
        self.bins.assign_add(added)

    def result(self) -> Any:
        """Returns the error, from 0 to 1; 0 without positions."""
        gaps = ops.abs(self.bins[:, 2] - self.bins[:, 1])
        return ops.sum(gaps) / ops.maximum(ops.sum(self.bins[:, 0]), 1.0)
