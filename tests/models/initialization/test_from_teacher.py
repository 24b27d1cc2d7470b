"""Student weights from a teacher: chosen layers, narrower models, removed segments."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import assign_weights
from pipeline.models.initialization import from_teacher
from pipeline.models.masked_lm import MaskedLM
from pipeline.models.weight_names import weight_table
from tests.family_examples import example_config

CONFIG = EncoderConfig(
    vocab_size=11,
    hidden_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    hidden_act="gelu",
    max_position_embeddings=9,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
LAYER = "encoder/layer_1"
INTEGERS = "even, first, last, every:k, or integers separated by commas"


def _weights(config: EncoderConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        row.ours: random.normal(0.0, 0.5, row.shape).astype("float32")
        for row in weight_table(config)
    }


def _batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(6)
    return {
        records.INPUT_IDS: random.integers(0, 11, (2, 7)).astype("int32"),
        records.INPUT_MASK: np.array([[1] * 7, [1] * 5 + [0] * 2], "int32"),
        records.SEGMENT_IDS: np.zeros((2, 7), "int32"),
    }


def test_narrower_student_keeps_hand_picked_columns() -> None:
    student = from_teacher.narrow_config(CONFIG, hidden_size=4)
    assert (student.num_attention_heads, student.intermediate_size) == (2, 8)
    weights = _weights(CONFIG)
    cut = from_teacher.narrow_weights(weights, CONFIG, student)
    assert {name: value.shape for name, value in cut.items()} == {
        row.ours: row.shape for row in weight_table(student)
    }
    # Two heads of three dimensions become two heads of two.
    columns = [0, 1, 3, 4]
    expected = {
        "attention/query/kernel": weights[f"{LAYER}/attention/query/kernel"][:4][:, columns],
        "attention/key/bias": weights[f"{LAYER}/attention/key/bias"][columns],
        "attention/output/kernel": weights[f"{LAYER}/attention/output/kernel"][columns][:, :4],
        "attention/output/bias": weights[f"{LAYER}/attention/output/bias"][:4],
        "feed_forward/intermediate/kernel": weights[f"{LAYER}/feed_forward/intermediate/kernel"][
            :4, :8
        ],
        "feed_forward/output/kernel": weights[f"{LAYER}/feed_forward/output/kernel"][:8, :4],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(cut[f"{LAYER}/{name}"], value, err_msg=name)
    np.testing.assert_array_equal(
        cut["encoder/embeddings/word_embeddings"],
        weights["encoder/embeddings/word_embeddings"][:, :4],
    )
    fewer = from_teacher.narrow_config(CONFIG, hidden_size=3, num_attention_heads=1)
    cut = from_teacher.narrow_weights(weights, CONFIG, fewer)
    np.testing.assert_array_equal(
        cut[f"{LAYER}/attention/value/kernel"],
        weights[f"{LAYER}/attention/value/kernel"][:3, :3],
    )


def test_equal_sizes_keep_all_weights() -> None:
    weights = _weights(CONFIG)
    same = from_teacher.narrow_weights(weights, CONFIG, from_teacher.narrow_config(CONFIG))
    for name, value in weights.items():
        np.testing.assert_array_equal(same[name], value)
        assert not np.shares_memory(same[name], value)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_can_be_narrowed(model_type: str) -> None:
    config = example_config(model_type)
    weights = _weights(config)
    student = from_teacher.narrow_config(config, hidden_size=8, num_attention_heads=1)
    cut = from_teacher.narrow_weights(weights, config, student)
    model = MaskedLM(student)
    assign_weights(model, cut)
    assert np.isfinite(np.asarray(model(_batch()))).all()
    biases = "encoder/relative_positions/bias"
    if biases in weights:
        np.testing.assert_array_equal(cut[biases], weights[biases][:, :1])


def test_electras_unprojected_embeddings_are_cut_with_the_hidden_size() -> None:
    config = example_config("electra", embedding_size=16)
    student = from_teacher.narrow_config(config, hidden_size=8)
    assert (student.embedding_size, student.has_projection) == (8, False)
    model = MaskedLM(student)
    assign_weights(model, from_teacher.narrow_weights(_weights(config), config, student))
    assert np.isfinite(np.asarray(model(_batch()))).all()


def test_narrowing_that_would_drop_electras_projection_is_refused() -> None:
    config = example_config("electra", embedding_size=8)
    assert from_teacher.narrow_config(config, hidden_size=12).embedding_size == 8
    with pytest.raises(InputError) as error:
        from_teacher.narrow_config(config, hidden_size=8)
    assert (error.value.subject, error.value.received) == (Setting("student_hidden_size"), 8)
    albert = example_config("albert", embedding_size=8)
    assert from_teacher.narrow_config(albert, hidden_size=8).has_projection


def test_outputs_of_single_segments_stay_without_segments() -> None:
    weights = _weights(CONFIG)
    bert = MaskedLM(CONFIG)
    assign_weights(bert, weights)
    config, remaining = from_teacher.without_segments(weights, CONFIG)
    distilbert = MaskedLM(config)
    assign_weights(distilbert, remaining)
    np.testing.assert_allclose(distilbert(_batch()), bert(_batch()), atol=2e-6)
    assert (config.model_type, config.type_vocab_size) == ("distilbert", 0)


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        ({"hidden_size": 8}, "student_hidden_size", 8),
        ({"hidden_size": 5}, "student_hidden_size", 5),
        ({"num_attention_heads": 3}, "student_attention_heads", 3),
        ({"num_attention_heads": 1}, "student_attention_heads", "1 for a hidden size of 6"),
        ({"intermediate_size": 13}, "student_intermediate_size", 13),
    ],
)
def test_narrow_config_refuses_sizes_that_do_not_fit(
    changes: dict[str, int], setting: str, received: object
) -> None:
    with pytest.raises(InputError) as error:
        from_teacher.narrow_config(CONFIG, **changes)
    assert (error.value.subject, error.value.received) == (Setting(setting), received)


def test_dropping_segments_requires_a_bert() -> None:
    config = dataclasses.replace(CONFIG, model_type="roberta", type_vocab_size=1, pad_token_id=1)
    with pytest.raises(InputError) as error:
        from_teacher.config_without_segments(config)
    assert error.value.subject == Setting("drop_segments")
    assert error.value.expected == "a teacher of model_type bert"
    assert error.value.received == "roberta"


def _layers(count: int) -> EncoderConfig:
    """Returns the configuration of a BERT with a number of layers."""
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    lengths = {"max_position_embeddings": 8, "type_vocab_size": 2}
    return EncoderConfig(num_hidden_layers=count, hidden_act="gelu", **sizes, **rates, **lengths)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),  # DistilBERT
        (4, 2, (0, 3)),
        (12, 3, (0, 6, 11)),  # 5.5 rounds to the even neighbor
        (12, 1, (0,)),
        (1, 1, (0,)),
        (3, 3, (0, 1, 2)),
    ],
)
def test_default_layer_map_is_evenly_spaced(teacher, student, expected):
    assert from_teacher.default_layer_map(teacher, student) == expected


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_default_layer_map_is_accepted_explicitly(counts):
    teacher, student = counts
    layers = from_teacher.default_layer_map(teacher, student)
    assert len(layers) == student
    assert (
        from_teacher.choose_layers(_layers(teacher), student, ",".join(map(str, layers))) == layers
    )


@pytest.mark.parametrize("student", [0, 5])
def test_default_layer_map_refuses_counts_out_of_range(student):
    with pytest.raises(InputError) as error:
        from_teacher.default_layer_map(4, student)
    assert error.value.subject == Setting("student_layers")
    assert error.value.received == student


@pytest.mark.parametrize(
    ("text", "expected", "received"),
    [
        ("0,2,3", "2 layers, one for each student layer", "3: '0,2,3'"),
        *((text, "ascending layers", f"'{text}'") for text in ("3,0", "0,0")),
        ("0,4", "layers from 0 to 3", "'0,4'"),
        *((text, INTEGERS, f"'{text}'") for text in ("0,-1", "", "0,²")),
    ],
)
def test_choose_layers_refuses_invalid_text(text, expected, received):
    with pytest.raises(InputError) as error:
        from_teacher.choose_layers(_layers(4), 2, text)
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
        (" 0,2, 4,7,9,11 ", None, (0, 2, 4, 7, 9, 11)),
    ],
)
def test_layer_maps_are_parsed(text, student, expected):
    assert from_teacher.choose_layers(_layers(12), student, text) == expected


@pytest.mark.parametrize(
    ("text", "student", "subject", "received"),
    [
        ("last", None, "layer_map", "'last'"),
        ("first", 13, "student_layers", 13),
        ("every:13", None, "layer_map", "'every:13'"),
        ("every:4", 2, "layer_map", "3: 'every:4'"),
        ("every:0", None, "layer_map", "'every:0'"),
    ],
)
def test_choose_layers_refuses_presets_that_do_not_fit(text, student, subject, received):
    with pytest.raises(InputError) as error:
        from_teacher.choose_layers(_layers(12), student, text)
    assert error.value.subject == Setting(subject)
    assert error.value.received == received


def test_student_weights_are_copies(config, weights):
    student_config, student = from_teacher.student_weights(weights, config, layer_map=(0, 2))
    assert student_config == dataclasses.replace(config, num_hidden_layers=2)
    assert student.keys() == {row.ours for row in weight_table(student_config)}
    for name, value in student.items():
        source = name.replace("encoder/layer_1/", "encoder/layer_2/")
        np.testing.assert_array_equal(value, weights[source])
        assert not np.shares_memory(value, weights[source])
