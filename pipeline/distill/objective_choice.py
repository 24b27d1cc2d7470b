"""The objective that settings ask for, of a student and a teacher whose shapes are known."""

from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.distill.objective import Objective
from pipeline.distill.settings import (
    ATTENTION,
    DEFAULT_LAYER_GROUPS,
    HIDDEN,
    HIDDEN_COSINE,
    HIDDEN_COSINE_MASKED,
    LOSS_NEEDS,
    DistillConfig,
)
from pipeline.models import layer_groups
from pipeline.models.config import EncoderConfig
from pipeline.models.layer_groups import LayerGroup, TeacherGroup
from pipeline.storage.manifest import SAMPLED, TeacherInfo


def choose_objective(
    config: DistillConfig,
    info: TeacherInfo | None,
    *,
    student: EncoderConfig,
    teacher: EncoderConfig | None,
    truncation_factor: int | None,
) -> Objective:
    """Returns the objective over what a cache holds.

    Args:
        config: what was asked for.
        info: what a teacher cache holds; None without one.
        student: its configuration.
        teacher: that of the live teacher, or of the one that made the cache, if known.
        truncation_factor: k, at most the cached one.

    Raises:
        InputError: a loss whose target is nowhere, a temperature that the cache
            does not hold, or layers that do not fit.
    """
    live = config.teacher is not None
    cached = _cached_groups(info)
    groups = {
        need: _groups(config, need, student, teacher)
        for need in (HIDDEN, ATTENTION)
        if any(LOSS_NEEDS[name] == need for name in config.losses)
    }
    if ATTENTION in groups and live:
        _expect_heads(student, teacher)
    return Objective(
        weights=_resolved(config.losses, live=live, cached=bool(cached)),
        temperature=config.temperature,
        tail=config.tail,
        truncation_factor=truncation_factor,
        cached_temperatures=() if info is None else info.temperatures,
        sampled=info is not None and info.truncation == SAMPLED,
        live=live,
        loss_positions=config.loss_positions,
        hidden_groups=groups.get(HIDDEN, ()),
        attention_groups=groups.get(ATTENTION, ()),
        cached_groups=cached,
        schedules=_resolved(config.loss_schedules, live=live, cached=bool(cached)),
    )


def _resolved(values: Mapping[str, Any], *, live: bool, cached: bool) -> dict[str, Any]:
    """Calls the hidden loss what it is where its states come from a cache."""
    renamed = {HIDDEN_COSINE: HIDDEN_COSINE_MASKED} if cached and not live else {}
    result = {renamed.get(name, name): value for name, value in values.items()}
    if len(result) != len(values):
        raise InputError(
            Setting("losses"),
            received=f"without `teacher`, {HIDDEN_COSINE} is {HIDDEN_COSINE_MASKED}",
            hint="expected one of them, received both",
        )
    return result


def _cached_groups(info: TeacherInfo | None) -> tuple[TeacherGroup, ...]:
    if info is None or not info.hidden_groups:
        return ()
    text = ",".join(info.hidden_groups)
    return layer_groups.parse_teacher_groups(text, layer_groups.MOST_LAYERS)


def _groups(
    config: DistillConfig, need: str, student: EncoderConfig, teacher: EncoderConfig | None
) -> tuple[LayerGroup, ...]:
    """Returns the layers that a kind of loss compares."""
    if teacher is None:
        # Without a cache either: the loss is refused for that.
        return ()
    text = config.layer_groups
    with naming_setting("layer_groups"):
        groups = layer_groups.parse_layer_groups(
            DEFAULT_LAYER_GROUPS[need] if text is None else text,
            teacher.num_hidden_layers,
            student.num_hidden_layers,
        )
    for group in groups:
        if need == ATTENTION and 0 in (group.teacher.first, group.student):
            raise InputError(
                Setting("layer_groups"),
                f"layers from 1 on, as embeddings have no {ATTENTION}",
                group,
            )
    return groups


def _expect_heads(student: EncoderConfig, teacher: EncoderConfig) -> None:
    if student.num_attention_heads != teacher.num_attention_heads:
        raise InputError(
            Setting("losses"),
            received=f"attention_mse expected a student of {teacher.num_attention_heads} attention "
            f"heads, as the teacher, received {student.num_attention_heads}",
        )
