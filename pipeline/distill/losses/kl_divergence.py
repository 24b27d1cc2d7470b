"""Divergence of the student from the teacher's distribution."""

from collections.abc import Mapping
from typing import Any

from pipeline.distill.losses.base import DistributionLoss
from pipeline.distill.losses.distributions import (
    StudentDistribution,
    TeacherDistribution,
    cross_entropy,
    negative_entropy,
)


class KLDivergence(DistributionLoss):
    """T² · Σ p log(p / q): Hinton et al., 2015, with their factor T².

    It is zero if the student equals the teacher, under every tail policy. It can be negative
    only with `drop`, where p and q have different sums.
    """

    name = "kl_divergence"
    uses_temperature = True
    default_tail = "bucket"

    def __call__(
        self, student: StudentDistribution, teacher: TeacherDistribution, batch: Mapping[str, Any]
    ) -> Any:
        entropy = negative_entropy(teacher, student.labels, tail=self.tail)
        return self.temperature**2 * (entropy + cross_entropy(teacher, student, tail=self.tail))
