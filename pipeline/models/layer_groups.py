"""Groups of teacher layers that a student layer is compared with, and means over them.

Layers are numbered from 1 to N. Number 0 is the embeddings' output, which has a hidden state
but no attention map.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.base.errors import InputError

# The largest layer number that fits the syntax of a group.
MAX_LAYERS = 9_999
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


@dataclasses.dataclass(frozen=True, order=True)
class TeacherGroup:
    """Consecutive teacher layers, `first` to `last`, whose mean is compared."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """A student layer and the teacher layers that it is compared with."""

    teacher: TeacherGroup
    student: int

    def __str__(self) -> str:
        return f"{self.teacher}:{self.student}"


def _parse_range(text: str, num_layers: int) -> TeacherGroup:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise InputError(None, "teacher layers such as 6 or 1-6", f"{text!r}")
    group = TeacherGroup(int(match[1]), int(match[2] or match[1]))
    if group.first > group.last:
        raise InputError(None, "an ascending range", f"{text!r}")
    if group.last > num_layers:
        raise InputError(None, f"teacher layers from 0 to {num_layers}", f"{text!r}")
    return group


def parse_teacher_groups(text: str, num_layers: int) -> tuple[TeacherGroup, ...]:
    """Parses groups of a teacher's N layers, for example `1-6,7-12`; they may overlap.

    Raises:
        InputError: a group is malformed, out of range or named twice.
    """
    groups = tuple(_parse_range(part, num_layers) for part in text.split(","))
    for group in groups:
        if groups.count(group) > 1:
            raise InputError(None, "a list that names each group once", f"{group} twice")
    return groups


def preset_groups(name: str, teacher_layers: int, student_layers: int) -> tuple[LayerGroup, ...]:
    """Returns the groups of a preset.

    The presets are:
        last     the last layers of both models, as DistilBERT
        mean     consecutive groups of equal size, as DistilRuBERT
        skip     the last layer of each of these groups, as TinyBERT
        uniform  the embeddings' outputs of both models, then `skip`

    Raises:
        InputError: the teacher's layers cannot be divided equally.

    Example:
        for 12 and 2 layers `mean` is `1-6:1,7-12:2`, `skip` is `6:1,12:2`, and `uniform` is
        `0:0,6:1,12:2`.
    """
    if name == "last":
        return (LayerGroup(TeacherGroup(teacher_layers, teacher_layers), student_layers),)
    size, rest = divmod(teacher_layers, student_layers)
    if rest:
        reason = f"not a multiple of the {student_layers} student layers"
        received = f"{name} for {teacher_layers} teacher layers, {reason}"
        raise InputError(None, "explicit groups such as 1-6:1,7-12:2", received)
    first = 1 if name == "mean" else size
    embeddings = (LayerGroup(TeacherGroup(0, 0), 0),) if name == "uniform" else ()
    return embeddings + tuple(
        LayerGroup(TeacherGroup(index * size + first, (index + 1) * size), index + 1)
        for index in range(student_layers)
    )


PRESETS = ("last", "mean", "skip", "uniform")


def parse_layer_groups(
    text: str, teacher_layers: int, student_layers: int
) -> tuple[LayerGroup, ...]:
    """Parses the setting `layer_groups`: a preset, or for example `1-6:1,7-12:2`.

    Raises:
        InputError: the preset is unknown, groups are out of range or overlap, or a student
            layer is named twice.
    """
    if text in PRESETS:
        return preset_groups(text, teacher_layers, student_layers)
    groups = []
    for part in text.split(","):
        teacher, colon, student = part.partition(":")
        if not colon or not student.strip().isdecimal():
            expected = f"{', '.join(PRESETS)}, or groups such as 1-6:1,7-12:2"
            raise InputError(None, expected, f"{text!r}")
        if int(student) > student_layers:
            raise InputError(None, f"student layers from 0 to {student_layers}", f"{part!r}")
        groups.append(LayerGroup(_parse_range(teacher, teacher_layers), int(student)))
    _expect_disjoint(groups)
    return tuple(groups)


def _expect_disjoint(groups: Sequence[LayerGroup]) -> None:
    """Refuses overlapping groups such as 1-6:1,6-12:2, which are probably a mistake."""
    for layer, next_layer in itertools.pairwise(sorted(group.student for group in groups)):
        if layer == next_layer:
            raise InputError(None, "a list that names each student layer once", f"{layer} twice")
    for group, next_group in itertools.pairwise(sorted(group.teacher for group in groups)):
        if next_group.first <= group.last:
            raise InputError(None, "groups that do not overlap", f"{group} and {next_group}")


def describe(groups: Iterable[LayerGroup]) -> str:
    """Returns groups as text, which `parse_layer_groups` parses."""
    return ",".join(map(str, groups))


def mean_state(states: Sequence[Any], group: TeacherGroup) -> Any:
    """Returns the mean of a group's hidden states, float32 [..., D].

    Args:
        states: all N + 1 hidden states.
        group: the layers.
    """
    return _mean(states[group.first : group.last + 1])


def mean_attention(attentions: Sequence[Any], group: TeacherGroup) -> Any:
    """Returns the mean of a group's attention maps, float32 [B, H, L, L].

    Args:
        attentions: all N attention maps.
        group: the layers, without layer 0, which has no map.
    """
    return _mean(attentions[group.first - 1 : group.last])


def _mean(tensors: Sequence[Any]) -> Any:
    # This module also checks flags, which must not import Keras.
    from keras import ops

    return sum(ops.cast(tensor, "float32") for tensor in tensors) / len(tensors)
