"""The training objective: a weighted sum of losses."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from keras import ops

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.distill.comparison import Comparison
from pipeline.distill.losses import LOSSES, load_loss
from pipeline.distill.losses.base import (
    ATTENTION_NEEDS,
    EMBEDDING,
    POSITION_NEEDS,
    RELATIONS,
    Loss,
)
from pipeline.distill.losses.weights import WeightSchedule
from pipeline.distill.settings import DistillConfig
from pipeline.models import layer_groups
from pipeline.models.config import EncoderConfig
from pipeline.models.layer_groups import LayerGroup
from pipeline.storage.manifest import SAMPLED, TeacherInfo


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses.

    Attributes:
        weights: the weights of losses, by name; their first values if a schedule changes them.
        comparison: the comparison of the student with the teacher.
        schedules: the schedules of weights that change, by loss.
    """

    weights: Mapping[str, float]
    comparison: Comparison = dataclasses.field(default_factory=Comparison)
    schedules: Mapping[str, WeightSchedule] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.weights:
            self.comparison.expect_target(name)

    @property
    def needs(self) -> set[str]:
        """The needs of all losses."""
        return {load_loss(name).needs for name in self.weights}

    @property
    def trains_head(self) -> bool:
        """Whether a loss depends on the student's masked-LM head."""
        return not self.needs.isdisjoint(POSITION_NEEDS)

    @property
    def compares_embeddings(self) -> bool:
        """Whether both models read each input a second time, for its embedding."""
        return EMBEDDING in self.needs

    def weight(self, name: str, progress: Any) -> Any:
        """Returns a loss's weight at a fraction t of all updates (`progress`).

        w₀ is the first and w₁ the last weight. The shape `linear` is w₀ + (w₁ − w₀)·t, and
        `cosine` is w₁ + (w₀ − w₁)·(1 + cos πt) / 2.
        """
        first, schedule = self.weights[name], self.schedules.get(name)
        if schedule is None or schedule.shape == "constant":
            return first
        if schedule.shape == "cosine":
            progress = (1.0 - ops.cos(math.pi * progress)) / 2.0
        return first + (schedule.last - first) * progress

    def total(self, means: Mapping[str, Any], progress: Any = 0.0) -> Any:
        """Returns the weighted sum of the losses' means; see `weight`."""
        return sum(self.weight(name, progress) * means[name] for name in self.weights)


def choose_objective(
    config: DistillConfig,
    info: TeacherInfo | None,
    *,
    student: EncoderConfig,
    teacher: EncoderConfig | None,
    truncation_factor: int | None,
) -> Objective:
    """Returns the objective over a cache's targets and a live teacher's.

    Args:
        config: the run's settings.
        info: the description of a teacher cache; None without one.
        student: the student's configuration.
        teacher: the configuration of the live teacher, or else of the teacher that made the
            cache; None if unknown.
        truncation_factor: k, at most the cached one.

    Raises:
        InputError: a loss has no target, the cache does not hold the temperature, or layers
            do not fit.
    """
    live, cached = config.teacher is not None, ()
    if info is not None and info.hidden_groups:
        text = ",".join(info.hidden_groups)
        cached = layer_groups.parse_teacher_groups(text, layer_groups.MAX_LAYERS)
    weights, schedules = (
        _renamed(values, from_cache=bool(cached) and not live)
        for values in (config.losses, config.loss_schedules)
    )
    cached_pooling = None if info is None else info.embedding
    _expect_used(config, weights)
    comparison = Comparison(
        temperature=config.temperature,
        tail=config.tail,
        truncation_factor=truncation_factor,
        cached_temperatures=() if info is None else info.temperatures,
        states_cached=info is not None and info.holds_states,
        sampled=info is not None and info.truncation == SAMPLED,
        live=live,
        loss_positions=config.loss_positions,
        layer_groups={
            name: _groups(config, load_loss(name), student, teacher)
            for name in weights
            if load_loss(name).default_layer_groups is not None
        },
        cached_groups=cached,
        relation_heads=_relation_heads(config, weights, student, teacher),
        pooling=config.embedding_pooling or cached_pooling or "mean",
        cached_pooling=cached_pooling,
    )
    return Objective(weights, comparison, schedules)


# Settings that apply only to losses with a certain need.
_SETTINGS_OF_NEEDS = {"relation_heads": RELATIONS, "embedding_pooling": EMBEDDING}


def _expect_used(config: DistillConfig, losses: Iterable[str]) -> None:
    """Raises InputError if a given setting applies to none of the losses."""
    needs = {load_loss(name).needs for name in losses}
    for name, need in _SETTINGS_OF_NEEDS.items():
        if (value := getattr(config, name)) is not None and need not in needs:
            names = [loss for loss in LOSSES if load_loss(loss).needs == need]
            expected = f"unset without {' or '.join(names)} in `losses`"
            raise InputError(Setting(name), expected, value)


def _relation_heads(
    config: DistillConfig,
    losses: Iterable[str],
    student: EncoderConfig,
    teacher: EncoderConfig | None,
) -> int:
    """Returns the number of relation heads that both models' vectors are split into.

    Raises:
        InputError: the number does not divide a hidden size.
    """
    if teacher is None or not any(load_loss(name).needs == RELATIONS for name in losses):
        return 1
    heads = config.relation_heads or teacher.num_attention_heads
    sizes = teacher.hidden_size, student.hidden_size
    if any(size % heads for size in sizes):
        expected = f"a number that divides the hidden sizes {sizes[0]} of the teacher and "
        expected += f"{sizes[1]} of the student"
        common = math.gcd(*sizes)
        hint = f"for example {next(n for n in range(heads, 0, -1) if common % n == 0)}"
        raise InputError(Setting("relation_heads"), expected, heads, hint)
    return heads


def _renamed(values: Mapping[str, Any], *, from_cache: bool) -> dict[str, Any]:
    """Returns values by the names of the losses that are computed; see `Loss.from_cache`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        computed = (from_cache and load_loss(name).from_cache) or name
        if computed in values and computed != name:
            received = f"without `teacher`, {name} is computed as {computed}, which is also in "
            received += "the list"
            hint = "remove one of them"
            raise InputError(Setting("losses"), received=received, hint=hint)
        result[computed] = value
    return result


def _groups(
    config: DistillConfig, loss: type[Loss], student: EncoderConfig, teacher: EncoderConfig | None
) -> tuple[LayerGroup, ...]:
    """Returns the layers that a loss compares, which both models must have."""
    if teacher is None:
        # `Comparison.expect_target` refuses the loss, because no target is known.
        return ()
    text = loss.default_layer_groups if config.layer_groups is None else config.layer_groups
    with naming_setting("layer_groups"):
        groups = layer_groups.parse_layer_groups(
            text, teacher.num_hidden_layers, student.num_hidden_layers
        )
    if loss.needs in ATTENTION_NEEDS:
        _expect_attention(groups, loss, config, student, teacher)
    return groups


def _expect_attention(
    groups: Iterable[LayerGroup],
    loss: type[Loss],
    config: DistillConfig,
    student: EncoderConfig,
    teacher: EncoderConfig,
) -> None:
    """Raises InputError if the layers of a loss have no attention that can be compared."""
    for group in groups:
        if 0 in (group.teacher.first, group.student):
            expected = (
                f"layers of at least 1 for {loss.name}, because embeddings have no {loss.needs}"
            )
            hint = "if `layer_groups` is unset, each loss compares its default layers"
            raise InputError(Setting("layer_groups"), expected, group, hint)
        if loss.needs == RELATIONS and group.teacher.first != group.teacher.last:
            expected = f"pairs of one teacher layer and one student layer for {loss.name}"
            raise InputError(Setting("layer_groups"), expected, group)
    own, heads = student.num_attention_heads, teacher.num_attention_heads
    if loss.needs != RELATIONS and config.teacher is not None and own != heads:
        received = (
            f"{loss.name} needs a student with {heads} attention heads like the teacher; it has "
            f"{own}"
        )
        raise InputError(Setting("losses"), received=received, hint="choose another loss")
