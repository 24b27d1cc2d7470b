"""Cosine distance of the probabilities of the teacher's top-k."""

from collections.abc import Mapping
from typing import Any

from keras import ops

from pipeline.distill.losses.base import DistributionLoss
from pipeline.distill.losses.distributions import StudentDistribution, TeacherDistribution


class ProbabilityCosine(DistributionLoss):
    """1 − cos(p_K, q_K): the second loss of the Chinese RoBERTa-wwm distillation.

    The cosine does not depend on the scale of either side, so each is first divided by its
    largest value.
    """

    name = "probability_cosine"
    is_expectation = False

    def __call__(
        self, student: StudentDistribution, teacher: TeacherDistribution, batch: Mapping[str, Any]
    ) -> Any:
        p = teacher.probabilities / ops.max(teacher.probabilities, axis=-1, keepdims=True)
        log_q = student.log_probs
        q = ops.exp(log_q - ops.stop_gradient(ops.max(log_q, axis=-1, keepdims=True)))
        lengths = ops.sum(p * p, axis=-1) * ops.sum(q * q, axis=-1)
        return 1.0 - ops.sum(p * q, axis=-1) * ops.rsqrt(lengths)
