"""Which losses, how weighted, over what: the number that training makes small."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from keras import ops

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.distill import losses as loss_functions
from pipeline.distill.settings import (
    ATTENTION,
    DEFAULT_TAILS,
    HIDDEN,
    HIDDEN_COSINE_MASKED,
    KL_DIVERGENCE,
    LABEL,
    LOSS_NEEDS,
    MASKED_LM,
    PROBABILITY_COSINE,
    SOFT_CROSS_ENTROPY,
    TOPK,
    WeightSchedule,
)
from pipeline.models.layer_groups import LayerGroup, TeacherGroup
from pipeline.teacher import truncation

# How to come by what a loss needs: from the cache, or else from a live teacher.
_FROM_CACHE = {
    TOPK: "a teacher cache (make one with create_teacher_output_data)",
    HIDDEN: "a teacher cache of create_teacher_output_data --cache_hidden_states=…",
}
_FROM_TEACHER = "a live teacher (--teacher=DIR)"


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each averaged over its real positions.

    What the teacher says comes from the cache where that holds it, else from a
    live teacher.

    Attributes:
        weights: of the losses, by name; the first ones where a schedule changes them.
        temperature: the distillation temperature of cross-entropy and divergence.
        tail: the tail policy; None for each loss's own default.
        truncation_factor: k, at most the cached one; None without a cache, and
            then a live teacher's whole distribution.
        cached_temperatures: those whose tail mass the cache holds; empty without one.
        sampled: whether the cache holds random draws instead of a top-k.
        live: whether there is a live teacher.
        loss_positions: over what the distribution losses go: `masked` positions
            or `all` real tokens.
        hidden_groups: the layers that the hidden losses compare.
        attention_groups: those that the attention loss compares.
        cached_groups: the groups whose hidden states the cache holds, in its order.
        schedules: of the weights that change.
    """

    weights: Mapping[str, float]
    temperature: float = 1.0
    tail: str | None = None
    truncation_factor: int | None = None
    cached_temperatures: tuple[float, ...] = ()
    sampled: bool = False
    live: bool = False
    loss_positions: str = "masked"
    hidden_groups: tuple[LayerGroup, ...] = ()
    attention_groups: tuple[LayerGroup, ...] = ()
    cached_groups: tuple[TeacherGroup, ...] = ()
    schedules: Mapping[str, WeightSchedule] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.weights:
            if not self._has(name):
                self._refuse(name)
        if self.loss_positions == "all" and not self.live:
            raise InputError(
                Setting("loss_positions"),
                f"masked, the positions that a cache holds, or {_FROM_TEACHER} beside it",
                "all",
            )
        if self.topk_cached and self.sampled:
            self._check_sampled()
        needs_tail = self._policy(KL_DIVERGENCE) != "renormalize"
        if self.topk_cached and needs_tail and self.temperature not in self.cached_temperatures:
            cached = ", ".join(f"{value:g}" for value in self.cached_temperatures)
            raise InputError(
                Setting("temperature"),
                f"one with a cached tail mass ({cached}), or any with `tail`=renormalize "
                f"or {_FROM_TEACHER} over masked examples",
                f"{self.temperature:g}",
            )

    def _check_sampled(self) -> None:
        """Refuses what draws say nothing about: only expectations under the teacher."""
        if self.temperature != 1.0:
            raise InputError(
                Setting("temperature"),
                "1, the only one of a cache of `truncation`=sampled",
                f"{self.temperature:g}",
            )
        if PROBABILITY_COSINE in self.weights:
            raise InputError(
                Setting("losses"),
                received=f"{PROBABILITY_COSINE} needs a top-k",
                hint=f"with a cache of `truncation`=sampled expected {SOFT_CROSS_ENTROPY} or "
                f"{KL_DIVERGENCE}",
            )

    def _has(self, name: str) -> bool:
        """Whether the target of a loss is anywhere."""
        need = LOSS_NEEDS[name]
        if need == LABEL or self.live:
            return True
        if need == TOPK:
            return bool(self.cached_temperatures)
        return name == HIDDEN_COSINE_MASKED and self.hidden_cached

    def _refuse(self, name: str) -> None:
        need = LOSS_NEEDS[name]
        ways = [_FROM_CACHE[need]] if need in _FROM_CACHE else []
        there = ", ".join(map(str, self.cached_groups))
        held = f" but of layers {there}" if there and need == HIDDEN else ""
        wanted = ",".join(str(group.teacher) for group in self.hidden_groups)
        if need == HIDDEN and wanted:
            ways = [ways[0].replace("…", wanted)]
        what = "top-k" if need == TOPK else need
        rest = " (no cache holds attention maps)" if need == ATTENTION else ""
        raise InputError(
            Setting("losses"),
            received=f"{name} needs the teacher's {what}, and nothing here holds any{held}",
            hint=f"expected {' or '.join([*ways, _FROM_TEACHER])}{rest}",
        )

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's distribution is known."""
        return self.live or bool(self.cached_temperatures)

    @property
    def topk_cached(self) -> bool:
        """Whether the teacher's distribution comes from the cache."""
        return bool(self.cached_temperatures) and self.loss_positions == "masked"

    @property
    def hidden_cached(self) -> bool:
        """Whether the cache holds the hidden states that are compared."""
        wanted = {group.teacher for group in self.hidden_groups}
        return bool(wanted) and wanted <= set(self.cached_groups)

    @property
    def supported(self) -> tuple[str, ...]:
        """The losses that evaluation reports.

        All that compare distributions or labels, whatever their weights; those
        of layers where they are trained.
        """
        free = {LABEL, TOPK} if self.has_teacher else {LABEL}
        without = {PROBABILITY_COSINE} if self.sampled and self.topk_cached else set()
        return tuple(
            name
            for name, need in LOSS_NEEDS.items()
            if name in self.weights or (need in free and name not in without)
        )

    def _policy(self, name: str) -> str:
        return self.tail if self.tail is not None else DEFAULT_TAILS[name]

    def _teacher(
        self, targets: Mapping[str, Any], teacher_logits: Any, temperature: float
    ) -> loss_functions.Teacher:
        if self.topk_cached:
            # Where this temperature is not cached the policy is to renormalize,
            # and the tail's mass cancels.
            cached = self.cached_temperatures
            index = cached.index(temperature) if temperature in cached else 0
        elif self.truncation_factor is None:
            return loss_functions.dense_distribution(teacher_logits, temperature=temperature)
        else:
            index = 0
            targets = truncation.truncate(
                teacher_logits,
                truncation_factor=self.truncation_factor,
                temperatures=(temperature,),
            )
        return loss_functions.teacher_distribution(
            targets[records.TOPK_IDS],
            targets[records.TOPK_LOGITS],
            targets[records.LOG_TAIL_MASSES][..., index],
            temperature=temperature,
            truncation_factor=self.truncation_factor,
        )

    def per_position(
        self,
        logits: Any,
        targets: Mapping[str, Any],
        names: Iterable[str],
        teacher_logits: Any = None,
    ) -> dict[str, Any]:
        """Returns the losses of distributions and labels at each position.

        Args:
            logits: float32 [B, P, V], the student's.
            targets: by the names of `data_specs.records`: `masked_lm_ids` [B, P]
                and from a cache `topk_ids`, `topk_logits` [B, P, K] and
                `log_tail_masses` [B, P, T].
            names: which losses; those of layers are passed over.
            teacher_logits: float32 [B, P, V], a live teacher's, where the
                distribution is not `topk_cached`.

        Returns:
            float32 [B, P] by name; padding has values that mean nothing.
        """
        names = set(names)
        labels = targets[records.MASKED_LM_IDS]
        result: dict[str, Any] = {}
        if not self.has_teacher:
            ids = ops.expand_dims(labels, -1)
            student = loss_functions.student_log_probs(logits, ids, labels, temperature=1.0)
            return {MASKED_LM: loss_functions.masked_lm(student)} if names else result
        soft = names & {SOFT_CROSS_ENTROPY, KL_DIVERGENCE}
        plain = names & {PROBABILITY_COSINE, MASKED_LM}
        for temperature in {1.0, self.temperature}:
            is_soft, is_plain = temperature == self.temperature, temperature == 1.0
            if not ((is_soft and soft) or (is_plain and plain)):
                continue
            teacher = self._teacher(targets, teacher_logits, temperature)
            student = loss_functions.student_log_probs(
                logits, teacher.ids, labels, temperature=temperature
            )
            if is_soft:
                result.update(self._soft_losses(teacher, student, soft))
            if is_plain and PROBABILITY_COSINE in plain:
                result[PROBABILITY_COSINE] = loss_functions.probability_cosine(teacher, student)
            if is_plain and MASKED_LM in plain:
                result[MASKED_LM] = loss_functions.masked_lm(student)
        return result

    def _soft_losses(
        self, teacher: loss_functions.Teacher, student: loss_functions.Student, names: set[str]
    ) -> dict[str, Any]:
        result = {}
        if SOFT_CROSS_ENTROPY in names:
            result[SOFT_CROSS_ENTROPY] = loss_functions.soft_cross_entropy(
                teacher, student, tail=self._policy(SOFT_CROSS_ENTROPY)
            )
        if KL_DIVERGENCE in names:
            result[KL_DIVERGENCE] = loss_functions.kl_divergence(
                teacher,
                student,
                tail=self._policy(KL_DIVERGENCE),
                temperature=self.temperature,
            )
        return result

    def weight(self, name: str, progress: Any) -> Any:
        """Returns a loss's weight.

        With w₀ its first weight and w₁ its last, at a part t of all updates:
        linear w₀ + (w₁ − w₀)·t, cosine w₁ + (w₀ − w₁)·(1 + cos πt) / 2.

        Args:
            name: a loss of `weights`.
            progress: t, from 0 to 1; a number or a float32 tensor.
        """
        first, schedule = self.weights[name], self.schedules.get(name)
        if schedule is None or schedule.shape == "constant":
            return first
        part = progress
        if schedule.shape == "cosine":
            part = (1.0 - ops.cos(math.pi * progress)) / 2.0
        return first + (schedule.last - first) * part

    def total(self, means: Mapping[str, Any], progress: Any = 0.0) -> Any:
        """Returns the weighted sum of the losses' means; see `weight`."""
        return sum(self.weight(name, progress) * means[name] for name in self.weights)


def mean_over_positions(values: Any, weights: Any) -> Any:
    """Returns the mean over real positions.

    Args:
        values: float32 [B, P].
        weights: float32 [B, P], 1 at real positions and 0 at padding.
    """
    # Not a product: what stands at padding may be infinite.
    real = ops.where(weights > 0, values, 0.0)
    return ops.sum(real) / ops.maximum(ops.sum(weights), 1.0)
