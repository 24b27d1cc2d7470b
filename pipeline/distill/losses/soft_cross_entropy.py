"""Cross-entropy of the student with the teacher's distribution."""

from collections.abc import Mapping
from typing import Any

from pipeline.distill.losses.base import DistributionLoss
from pipeline.distill.losses.distributions import (
    StudentDistribution,
    TeacherDistribution,
    cross_entropy,
)


class SoftCrossEntropy(DistributionLoss):
    """−Σ p log q: the first loss of the Chinese RoBERTa-wwm distillation, which drops the tail."""

    name = "soft_cross_entropy"
    uses_temperature = True
    default_tail = "drop"

    def __call__(
        self, student: StudentDistribution, teacher: TeacherDistribution, batch: Mapping[str, Any]
    ) -> Any:
        return cross_entropy(teacher, student, tail=self.tail)
