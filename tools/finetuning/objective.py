"""The fine-tuning objective: cross-entropy with labels, and divergence from a teacher.

Task distillation is weight · T² · KL(p_T ‖ q_T) + (1 − weight) · cross-entropy with
the labels (Hinton et al., 2015). Here p_T and q_T are the distributions of the teacher
and of the student at temperature T. Span tasks take the mean over the start and the end
(Sanh et al., 2019, for SQuAD). Token classification takes the mean over all words of a
batch. Regression uses squared differences instead.
"""

import dataclasses
from collections.abc import Mapping

from keras import ops

from data_specs.records import TEACHER_LOGITS
from pipeline.models.architectures.components import Tensor
from tools.finetuning.inputs import TARGETS, WEIGHTS
from tools.finetuning.kinds import KINDS
from tools.finetuning.kinds.base import TaskKind


@dataclasses.dataclass(frozen=True)
class TaskObjective:
    """The loss of a task.

    Attributes:
        name: the name of the task's kind.
        distill_weight: weight of the teacher's logits, from 0 to 1; 0 without a teacher.
        distill_temperature: T.
    """

    name: str
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    @property
    def kind(self) -> TaskKind:
        """The kind of the task."""
        return KINDS[self.name]

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: the student's logits, float32 [B, C], [B, 2, L] or [B, L, C].
            batch: a batch of `TrainingBatches`, with `teacher_logits` if `distill_weight` is
                above 0.
        """
        terms = [(1.0 - self.distill_weight) * self._label_losses(logits, batch)]
        if self.distill_weight:
            terms.append(self.distill_weight * self._teacher_losses(logits, batch))
        weights = self.kind.loss_weights(ops.cast(batch[WEIGHTS], "float32"), batch)
        return ops.sum(sum(terms) * weights) / ops.sum(weights)

    def _label_losses(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if self.kind.predicts_number:
            return ops.square(logits[:, 0] - batch[TARGETS])
        log_probs = self._log_probs(logits, batch, 1.0)
        one_hot = ops.one_hot(batch[TARGETS], ops.shape(logits)[-1], dtype="float32")
        return self.kind.mean_losses(-ops.sum(one_hot * log_probs, axis=-1))

    def _teacher_losses(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        teacher = batch[TEACHER_LOGITS]
        if self.kind.predicts_number:
            return ops.square(logits[:, 0] - teacher[:, 0])
        temperature = self.distill_temperature
        log_p = self._log_probs(teacher, batch, temperature)
        log_q = self._log_probs(logits, batch, temperature)
        divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        return temperature**2 * self.kind.mean_losses(divergence)

    def _log_probs(self, logits: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        return ops.log_softmax(self.kind.mask_logits(logits / temperature, batch), axis=-1)
