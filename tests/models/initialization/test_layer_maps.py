"""Which teacher layers a student starts from."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError, Setting
from pipeline.models.initialization.from_teacher import (
    choose_layers,
    default_layer_map,
    student_weights,
)
from pipeline.models.weight_names import weight_table

INTEGERS = "even, first, last, every:k, or integers separated by commas"


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
    assert choose_layers(teacher, student, ",".join(map(str, layers))) == layers


@pytest.mark.parametrize("student", [0, 5])
def test_default_layer_map_refuses_counts_out_of_range(student):
    with pytest.raises(InputError) as error:
        default_layer_map(4, student)
    assert error.value.subject == Setting("student_layers")
    assert error.value.received == student


@pytest.mark.parametrize(
    ("text", "expected", "received"),
    [
        ("0,2,3", "2 layers, one for each of the student's", "3: '0,2,3'"),
        ("3,0", "ascending layers", "'3,0'"),
        ("0,0", "ascending layers", "'0,0'"),
        ("0,4", "layers from 0 to 3", "'0,4'"),
        ("0,-1", INTEGERS, "'0,-1'"),
        ("", INTEGERS, "''"),
        ("0,²", INTEGERS, "'0,²'"),
    ],
)
def test_choose_layers_refuses_invalid_text(text, expected, received):
    with pytest.raises(InputError) as error:
        choose_layers(4, 2, text)
    assert error.value.subject == Setting("layer_map")
    assert (error.value.expected, error.value.received) == (expected, received)


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
def test_layer_maps_are_read(text, student, expected):
    assert choose_layers(12, student, text) == expected


@pytest.mark.parametrize(
    ("text", "student", "subject", "received"),
    [
        ("last", None, "layer_map", "none"),
        ("first", 13, "student_layers", 13),
        ("every:13", None, "layer_map", "'every:13'"),
        ("every:4", 2, "layer_map", "3: 'every:4'"),
        ("every:0", None, "layer_map", "'every:0'"),
    ],
)
def test_choose_layers_refuses_presets_that_do_not_fit(text, student, subject, received):
    with pytest.raises(InputError) as error:
        choose_layers(12, student, text)
    assert error.value.subject == Setting(subject)
    assert error.value.received == received


def test_choose_layers_allows_spaces():
    assert choose_layers(4, 2, " 0, 3 ") == (0, 3)


def test_student_weights_copies_values(config, weights):
    student_config, student = student_weights(weights, config, layer_map=(0, 2))
    assert student_config == dataclasses.replace(config, num_hidden_layers=2)
    assert student.keys() == {row.ours for row in weight_table(student_config)}
    for name, value in student.items():
        source = name.replace("encoder/layer_1/", "encoder/layer_2/")
        np.testing.assert_array_equal(value, weights[source])
        assert not np.shares_memory(value, weights[source])
