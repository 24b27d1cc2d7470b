"""Layer groups: parsing, presets, means and refused texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.models import layer_groups
from pipeline.models.layer_groups import LayerGroup, TeacherGroup, mean_attention, mean_state


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1-6:1,7-12:2", "1-6:1,7-12:2"),
        (" 12 : 2 , 0:0", "12:2,0:0"),
        ("last", "12:2"),
        ("mean", "1-6:1,7-12:2"),
        ("skip", "6:1,12:2"),
        ("uniform", "0:0,6:1,12:2"),
    ],
)
def test_layer_groups_are_parsed(text: str, expected: str) -> None:
    groups = layer_groups.parse_layer_groups(text, 12, 2)
    assert layer_groups.describe(groups) == expected
    assert layer_groups.parse_layer_groups(expected, 12, 2) == groups


def test_parsed_group_has_teacher_and_student_layers() -> None:
    (group,) = layer_groups.parse_layer_groups("1-6:1", 12, 2)
    assert group == LayerGroup(TeacherGroup(1, 6), 1)
    groups = layer_groups.parse_teacher_groups("1-6,4-6, 12", 12)
    assert groups == (TeacherGroup(1, 6), TeacherGroup(4, 6), TeacherGroup(12, 12))


@given(st.integers(1, 12), st.integers(1, 8))
def test_presets_divide_the_teachers_layers_equally(size: int, student: int) -> None:
    teacher = size * student
    groups = layer_groups.preset_groups("mean", teacher, student)
    covered = [n for g in groups for n in range(g.teacher.first, g.teacher.last + 1)]
    assert covered == list(range(1, teacher + 1))
    assert [group.student for group in groups] == list(range(1, student + 1))
    skipped = layer_groups.preset_groups("skip", teacher, student)
    assert [group.teacher.first for group in skipped] == [group.teacher.last for group in groups]


@pytest.mark.parametrize(
    ("text", "expected", "received"),
    [
        ("first", "last, mean, skip, uniform, or groups such as 1-6:1,7-12:2", "'first'"),
        ("1-6", "last, mean, skip, uniform, or groups such as 1-6:1,7-12:2", "'1-6'"),
        ("1-6:1,x:2", "teacher layers such as 6 or 1-6", "'x'"),
        ("6-1:1", "an ascending range", "'6-1'"),
        ("7-13:2", "teacher layers from 0 to 12", "'7-13'"),
        ("1-6:1,7-12:6", "student layers from 0 to 5", "'7-12:6'"),
        ("1-6:1,7-12:1", "a list that names each student layer once", "1 twice"),
        ("1-6:1,6-12:2", "groups that do not overlap", "1-6 and 6-12"),
        (
            "mean",
            "explicit groups such as 1-6:1,7-12:2",
            "mean for 12 teacher layers, not a multiple of the 5 student layers",
        ),
    ],
)
def test_layer_groups_reject_invalid_text(text: str, expected: str, received: str) -> None:
    with pytest.raises(InputError) as error:
        layer_groups.parse_layer_groups(text, 12, 5)
    assert error.value.subject is None
    assert (error.value.expected, error.value.received) == (expected, received)


def test_teacher_groups_reject_the_same_group_twice() -> None:
    with pytest.raises(InputError) as error:
        layer_groups.parse_teacher_groups("1-6,12,1-6", 12)
    assert error.value.received == "1-6 twice"


def test_group_means_equal_hand_computed_values() -> None:
    states = [np.full((1, 2, 3), number, "float32") for number in range(5)]
    np.testing.assert_array_equal(mean_state(states, TeacherGroup(2, 4)), np.full((1, 2, 3), 3.0))
    np.testing.assert_array_equal(mean_state(states, TeacherGroup(0, 1)), np.full((1, 2, 3), 0.5))
    # The first map belongs to layer 1.
    maps = [np.full((1, 1, 2, 2), number, "float32") for number in range(1, 5)]
    np.testing.assert_array_equal(
        mean_attention(maps, TeacherGroup(1, 2)), np.full((1, 1, 2, 2), 1.5)
    )
    np.testing.assert_array_equal(mean_attention(maps, TeacherGroup(4, 4)), maps[3])
