"""Which losses, how weighted, over what: the number that training makes small."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from keras import ops

from data_specs import records
from pipeline.distill import losses as loss_functions
from pipeline.distill.settings import DEFAULT_TAILS, LABEL, LOSS_NEEDS
from pipeline.errors import InputError


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each averaged over the real masked positions.

    Attributes:
        weights: of the losses, by name.
        temperature: the distillation temperature of cross-entropy and divergence.
        tail: the tail policy; None for each loss's own default.
        truncation_factor: k, at most the cached one; None without a cache.
        cached_temperatures: those whose tail mass the cache holds; empty without one.
        source: what is read without a cache, for messages.
    """

    weights: Mapping[str, float]
    temperature: float = 1.0
    tail: str | None = None
    truncation_factor: int | None = None
    cached_temperatures: tuple[float, ...] = ()
    source: str = "masked examples"

    def __post_init__(self) -> None:
        lacking = [name for name in self.weights if name not in self.supported]
        if lacking:
            raise InputError(
                f"--losses: {lacking[0]} needs the teacher's top-k, which {self.source} lack; "
                "expected a teacher cache (make one of masked examples with "
                "create_teacher_output_data) or --losses=masked_lm=1"
            )
        needs_tail = self._policy("kl_divergence") != "renormalize"
        if self.has_teacher and needs_tail and self.temperature not in self.cached_temperatures:
            cached = ", ".join(f"{value:g}" for value in self.cached_temperatures)
            raise InputError(
                f"--temperature: expected one with a cached tail mass ({cached}), or any with "
                f"--tail=renormalize, received {self.temperature:g}"
            )

    @property
    def has_teacher(self) -> bool:
        """Whether the cache holds a teacher's top-k."""
        return self.truncation_factor is not None

    @property
    def supported(self) -> tuple[str, ...]:
        """The losses that the cache can give, whatever their weights."""
        return tuple(name for name, need in LOSS_NEEDS.items() if need == LABEL or self.has_teacher)

    def _policy(self, name: str) -> str:
        return self.tail if self.tail is not None else DEFAULT_TAILS[name]

    def _teacher(self, targets: Mapping[str, Any], temperature: float) -> loss_functions.Teacher:
        tails = targets[records.LOG_TAIL_MASSES]
        # Where this temperature is not cached the policy is to renormalize, and
        # the tail's mass cancels.
        cached = self.cached_temperatures
        index = cached.index(temperature) if temperature in cached else 0
        return loss_functions.teacher_distribution(
            targets[records.TOPK_IDS],
            targets[records.TOPK_LOGITS],
            tails[..., index],
            temperature=temperature,
            truncation_factor=self.truncation_factor,
        )

    def per_position(
        self, logits: Any, targets: Mapping[str, Any], names: Iterable[str]
    ) -> dict[str, Any]:
        """Returns losses at each position.

        Args:
            logits: float32 [B, P, V], the student's.
            targets: by the names of `data_specs.records`: `masked_lm_ids` [B, P]
                and from a cache `topk_ids`, `topk_logits` [B, P, K] and
                `log_tail_masses` [B, P, T].
            names: which losses.

        Returns:
            float32 [B, P] by name; padding has values that mean nothing.
        """
        names = set(names)
        labels = targets[records.MASKED_LM_IDS]
        result: dict[str, Any] = {}
        if not self.has_teacher:
            ids = ops.expand_dims(labels, -1)
            student = loss_functions.student_log_probs(logits, ids, labels, temperature=1.0)
            return {"masked_lm": loss_functions.masked_lm(student)} if names else result
        soft = names & {"soft_cross_entropy", "kl_divergence"}
        plain = names & {"probability_cosine", "masked_lm"}
        for temperature in {1.0, self.temperature}:
            is_soft, is_plain = temperature == self.temperature, temperature == 1.0
            if not ((is_soft and soft) or (is_plain and plain)):
                continue
            teacher = self._teacher(targets, temperature)
            student = loss_functions.student_log_probs(
                logits, teacher.ids, labels, temperature=temperature
            )
            if is_soft:
                result.update(self._soft_losses(teacher, student, soft))
            if is_plain and "probability_cosine" in plain:
                result["probability_cosine"] = loss_functions.probability_cosine(teacher, student)
            if is_plain and "masked_lm" in plain:
                result["masked_lm"] = loss_functions.masked_lm(student)
        return result

    def _soft_losses(
        self, teacher: loss_functions.Teacher, student: loss_functions.Student, names: set[str]
    ) -> dict[str, Any]:
        result = {}
        if "soft_cross_entropy" in names:
            result["soft_cross_entropy"] = loss_functions.soft_cross_entropy(
                teacher, student, tail=self._policy("soft_cross_entropy")
            )
        if "kl_divergence" in names:
            result["kl_divergence"] = loss_functions.kl_divergence(
                teacher,
                student,
                tail=self._policy("kl_divergence"),
                temperature=self.temperature,
            )
        return result

    def total(self, means: Mapping[str, Any]) -> Any:
        """Returns the weighted sum of the losses' means."""
        return sum(weight * means[name] for name, weight in self.weights.items())


def mean_over_positions(values: Any, weights: Any) -> Any:
    """Returns the mean over real masked positions.

    Args:
        values: float32 [B, P].
        weights: float32 [B, P], 1 at real positions and 0 at padding.
    """
    # Not a product: what stands at padding may be infinite.
    real = ops.where(weights > 0, values, 0.0)
    return ops.sum(real) / ops.maximum(ops.sum(weights), 1.0)
