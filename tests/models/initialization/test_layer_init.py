"""Which teacher layers a student starts from."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.models.initialization.layer_init import (
    default_layer_map,
    parse_layer_map,
    student_weights,
)
from pipeline.models.weight_names import weight_table

INTEGERS = "--layer_map: expected even, first, last, every:k, or integers separated by commas"


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),  # DistilBERT
        (4, 2, (0, 3)),
        (12, 3, (0, 6, 11)),  # 5.5 rounds to the even neighbour
        (12, 1, (0,)),
        (1, 1, (0,)),
        (3, 3, (0, 1, 2)),
    ],
)
def test_default_layer_map(teacher, student, expected):
    assert default_layer_map(teacher, student) == expected


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_default_layer_map_is_a_layer_map(counts):
    teacher, student = counts
    layers = default_layer_map(teacher, student)
    assert len(layers) == student
    assert parse_layer_map(",".join(map(str, layers)), teacher, student) == layers


@pytest.mark.parametrize("student", [0, 5])
def test_default_layer_map_refuses(student):
    with pytest.raises(InputError, match=f"expected 1 to 4, .* received {student}"):
        default_layer_map(4, student)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0,2,3",
            "--layer_map: expected 2 layers, one for each of the student's, received 3: '0,2,3'",
        ),
        ("3,0", "--layer_map: expected ascending layers, received '3,0'"),
        ("0,0", "--layer_map: expected ascending layers, received '0,0'"),
        ("0,4", "--layer_map: expected layers from 0 to 3, received '0,4'"),
        (
            "0,-1",
            f"{INTEGERS}, received '0,-1'",
        ),
        (
            "",
            f"{INTEGERS}, received ''",
        ),
        (
            "0,²",
            f"{INTEGERS}, received '0,²'",
        ),
    ],
)
def test_parse_layer_map_refuses(text, message):
    with pytest.raises(InputError) as error:
        parse_layer_map(text, 4, 2)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "student", "expected"),
    [
        ("even", 6, (0, 2, 4, 7, 9, 11)),
        ("first", 3, (0, 1, 2)),
        ("last", 3, (9, 10, 11)),
        ("every:4", None, (3, 7, 11)),
        ("every:2", 6, (1, 3, 5, 7, 9, 11)),
        ("0,2,4,7,9,11", None, (0, 2, 4, 7, 9, 11)),
    ],
)
def test_presets(text, student, expected):
    assert parse_layer_map(text, 12, student) == expected


@pytest.mark.parametrize(
    ("text", "student", "message"),
    [
        ("last", None, "--layer_map: expected --student_layers beside last, received none"),
        ("first", 13, "--student_layers: expected 1 to 12"),
        ("every:13", None, "--layer_map: expected every:1 to every:12, the teacher's number of"),
        ("every:4", 2, "--layer_map: expected 2 layers, .* received 3: 'every:4'"),
        ("every:0", None, "--layer_map: expected even, first, last, every:k, or integers"),
    ],
)
def test_presets_that_are_none(text, student, message):
    with pytest.raises(InputError, match=message):
        parse_layer_map(text, 12, student)


def test_parse_layer_map_allows_spaces():
    assert parse_layer_map(" 0, 3 ", 4, 2) == (0, 3)


def test_student_weights_copies_values(config, weights):
    student_config, student = student_weights(weights, config, layer_map=(0, 2))
    assert student_config == dataclasses.replace(config, num_hidden_layers=2)
    assert student.keys() == {row.ours for row in weight_table(student_config)}
    for name, value in student.items():
        source = name.replace("encoder/layer_1/", "encoder/layer_2/")
        np.testing.assert_array_equal(value, weights[source])
        assert not np.shares_memory(value, weights[source])
