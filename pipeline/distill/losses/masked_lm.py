"""Masked language modeling: the loss of the true token."""

from collections.abc import Mapping
from typing import Any

from pipeline.distill.losses.base import LABEL, MASKED, Loss
from pipeline.distill.losses.distributions import StudentDistribution


class MaskedLMLoss(Loss):
    """−log q(label): Devlin et al., 2019. The teacher's side is ignored."""

    name = "masked_lm"
    needs = LABEL
    averaged_over = MASKED

    def __call__(self, student: StudentDistribution, teacher: Any, batch: Mapping[str, Any]) -> Any:
        return -student.label_log_probs
