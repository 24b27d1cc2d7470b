"""ModernBERT: configurations, rotary positions, local attention, and its students."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data_specs.records import HIDDEN_STATES, INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.models.architectures.components import ATTENTIONS
from pipeline.models.architectures.modernbert import rotate
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import (
    ModelSource,
    find_model,
    get_weights,
    save_hf,
)
from pipeline.models.initialization import from_teacher
from pipeline.models.masked_lm import MaskedLM
from pipeline.models.weight_names import count_parameters
from tests.family_examples import example_config

TINY = example_config("modernbert", num_hidden_layers=7, local_attention=4)

# The configuration of `answerdotai/ModernBERT-base`, without keys that computation does not need.
BASE = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "vocab_size": 50368,
}
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def _read(folder, settings: dict) -> EncoderConfig:
    path = Location.parse(folder) / "config.json"
    path.write_text(json.dumps(settings))
    return EncoderConfig.from_json(path)


def _as_written_by_transformers_5(settings: dict) -> dict:
    """Returns a configuration with the keys of `transformers` 5."""
    settings = dict(settings)
    every = settings.pop("global_attn_every_n_layers")
    count = settings["num_hidden_layers"]
    thetas = {GLOBAL: settings.pop("global_rope_theta"), LOCAL: settings.pop("local_rope_theta")}
    return {
        **settings,
        "layer_types": [LOCAL if index % every else GLOBAL for index in range(count)],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
    }


def test_published_configuration_has_the_published_size(tmp_path) -> None:
    config = _read(tmp_path, BASE)
    assert (config.hidden_act, config.layer_norm_eps, config.max_input_length) == (
        "gelu",
        1e-5,
        8192,
    )
    assert [config.is_global_layer(index) for index in range(5)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert config.classifier_pooling == "mean"
    # "149 million parameters".
    assert 149.0e6 < count_parameters(config) < 150.0e6
    # mmBERT has one base for all layers, and a key for positions that is ignored.
    changes = {"local_rope_theta": 160000.0, "position_embedding_type": "sans_pos"}
    assert _read(tmp_path, BASE | changes).local_rope_theta == 160000.0
    # null means the global base.
    assert _read(tmp_path, BASE | {"local_rope_theta": None}).local_rope_theta == 160000.0


@pytest.mark.parametrize(("every", "layers"), [(3, 22), (3, 2), (1, 4), (2, 5), (4, 4), (5, 3)])
def test_old_and_new_configuration_keys_give_the_same_model(
    tmp_path, every: int, layers: int
) -> None:
    old = {**BASE, "global_attn_every_n_layers": every, "num_hidden_layers": layers}
    old["local_rope_theta"] = 1234.0
    first, second = (_read(tmp_path, form) for form in (old, _as_written_by_transformers_5(old)))
    kinds = [
        [config.is_global_layer(index) for index in range(layers)] for config in (first, second)
    ]
    assert kinds[0] == kinds[1]
    same = {"global_attn_every_n_layers": every}
    assert dataclasses.replace(second, **same) == first
    # The older form is written, because both versions read it.
    written = first.to_hf()
    assert written["global_attn_every_n_layers"] == every
    assert written["local_rope_theta"] == 1234.0 and written["norm_eps"] == 1e-5
    assert "layer_types" not in written and "type_vocab_size" not in written
    assert _read(tmp_path, written) == first


NOT_SCALED = {"rope_theta": 1e4, "rope_type": "default"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"norm_bias": True}, "norm_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"decoder_bias": False}, "decoder_bias"),
        ({"classifier_bias": True}, "classifier_bias"),
        ({"classifier_activation": "silu"}, "classifier_activation"),
        ({"hidden_activation": "silu"}, "hidden_act"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"local_attention": 0}, "local_attention"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ({"global_rope_theta": "x"}, "global_rope_theta"),
        ({"hidden_size": 36}, "hidden_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"layer_types": [LOCAL, GLOBAL]}, "layer_types"),
        ({"layer_types": [GLOBAL] * 21 + [LOCAL]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"rope_parameters": {GLOBAL: NOT_SCALED | {"rope_type": "yarn"}}}, "rope_parameters"),
        ({"rope_parameters": {LOCAL: 1}}, "rope_parameters"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, changes: dict, key: str) -> None:
    with pytest.raises(InputError) as error:
        _read(tmp_path, BASE | changes)
    assert error.value.subject == f"{tmp_path / 'config.json'}: {key}"


def test_other_families_refuse_modernberts_fields() -> None:
    with pytest.raises(InputError) as error:
        example_config("bert", local_attention=128)
    assert error.value.subject == "local_attention"
    with pytest.raises(InputError) as error:
        example_config("modernbert", global_rope_theta=None)
    assert error.value.subject == "global_rope_theta"
    bert = example_config("bert")
    assert "local_attention" not in bert.to_dict() and "local_attention" not in bert.to_hf()


def _batch(length: int = 20) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    mask = np.ones((2, length), np.int32)
    mask[1, length - 7 :] = 0
    return {
        INPUT_IDS: random.integers(0, 37, (2, length)).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: np.zeros((2, length), np.int32),
    }


def test_local_layers_attend_to_half_a_window_on_each_side() -> None:
    batch = _batch()
    maps = MaskedLM(TINY, seed=2).activations(batch, wanted=(ATTENTIONS,))[ATTENTIONS]
    distances = np.abs(np.arange(20)[:, None] - np.arange(20)[None])
    for index, attention in enumerate(map(np.asarray, maps)):
        near = (distances <= 2) | TINY.is_global_layer(index)
        for row in range(2):
            length = batch[INPUT_MASK][row].sum()
            expected = near & (np.arange(20) < length)[None]
            attended = attention[row, :, :length] > 0
            expected = np.broadcast_to(expected[:length], attended.shape)
            np.testing.assert_array_equal(attended, expected)


def test_attention_maps_are_returned_only_on_request() -> None:
    model, batch = MaskedLM(TINY), _batch()
    assert ATTENTIONS not in model.activations(batch)
    assert len(model.activations(batch, wanted=(ATTENTIONS,))[ATTENTIONS]) == 7


def test_only_embeddings_and_last_state_are_normalized() -> None:
    states = MaskedLM(TINY, seed=2).activations(_batch())[HIDDEN_STATES]
    assert len(states) == 8
    # A new normalization gives a deviation of 1, for the embeddings and for the last state.
    deviations = [float(np.asarray(state).std(axis=-1).mean()) for state in states]
    np.testing.assert_allclose([deviations[0], deviations[-1]], 1.0, atol=1e-3)
    assert all(deviation > 1.1 for deviation in deviations[2:-1])


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_finite_and_close_to_float32(dtype: str) -> None:
    config = dataclasses.replace(TINY, initializer_range=0.1)
    exact, rough = MaskedLM(config, seed=2), MaskedLM(config, seed=2, dtype=dtype)
    outputs = [np.asarray(model(_batch())) for model in (exact, rough)]
    assert np.isfinite(outputs[1]).all()
    real = _batch()[INPUT_MASK] == 1
    assert 0 < np.abs(outputs[0] - outputs[1])[real].max() < 0.2 * np.abs(outputs[0]).max()


@given(st.integers(0, 7000), st.integers(0, 60))
def test_products_of_rotated_vectors_depend_only_on_the_distance(first: int, distance: int) -> None:
    random = np.random.default_rng(first)
    query, key = random.normal(size=(2, 8)).astype(np.float32)
    length = 64

    def product(query_at: int, key_at: int) -> float:
        rows = np.zeros((2, 1, 1, length, 8), np.float32)
        rows[0, 0, 0, query_at], rows[1, 0, 0, key_at] = query, key
        turned = [np.asarray(rotate(row, 100.0))[0, 0] for row in rows]
        return float(turned[0][query_at] @ turned[1][key_at])

    shift = length - 1 - distance
    assert product(distance, 0) == pytest.approx(product(length - 1, shift), abs=1e-4)


def test_pairs_of_dimensions_are_rotated_by_powers_of_the_base() -> None:
    x = np.zeros((1, 1, 4, 6), np.float32)
    x[..., 1] = 1.0
    turned = np.asarray(rotate(x, 50.0))[0, 0]
    angles = np.arange(4) * 50.0 ** (-2 / 6)
    np.testing.assert_allclose(turned[:, 1], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(turned[:, 4], np.sin(angles), atol=1e-6)
    assert not turned[:, [0, 2, 3, 5]].any()


def _write_without(folder, *names: str) -> ModelSource:
    """Returns a model directory whose files lack the tensors of these names."""
    directory = Location.parse(folder)
    save_hf(directory, MaskedLM(TINY, seed=2))
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if name not in names}
    save_file(tensors, path)
    return find_model(directory)


def test_fine_tuned_model_has_no_masked_lm_head(tmp_path) -> None:
    # The head of a fine-tuned model has layers of the same names.
    source = _write_without(tmp_path, "decoder.bias")
    assert source.is_bare and not source.has_head
    with pytest.raises(InputError) as error:
        source.read_weights()
    assert "decoder.bias" in error.value.received
    # A task head has both layers, so a model with only one of them has an incomplete head.
    source = _write_without(tmp_path, "head.norm.weight")
    assert not source.is_bare and not source.has_head


# Layers of a student.


def _teacher(layers: int, every: int = 3) -> EncoderConfig:
    return dataclasses.replace(TINY, num_hidden_layers=layers, global_attn_every_n_layers=every)


@pytest.mark.parametrize(
    ("layers", "student", "expected"),
    [
        (22, 4, (0, 7, 14, 21)),
        (22, 7, (0, 4, 7, 9, 14, 17, 21)),
        (22, 2, (0, 20)),
        (22, 1, (0,)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_even_layers_keep_the_pattern_of_global_layers(
    layers: int, student: int, expected: tuple
) -> None:
    assert from_teacher.choose_layers(_teacher(layers), student, None) == expected
    assert from_teacher.choose_layers(_teacher(layers), student, "even") == expected


@given(st.data(), st.integers(1, 5), st.integers(1, 30))
def test_even_layers_are_always_accepted_explicitly(data, every: int, layers: int) -> None:
    student = data.draw(st.integers(1, layers))
    teacher = _teacher(layers, every)
    chosen = from_teacher.choose_layers(teacher, student, None)
    assert len(chosen) == student and chosen[0] == 0
    assert list(chosen) == sorted(set(chosen)) and chosen[-1] < layers
    for index, layer in enumerate(chosen):
        assert teacher.is_global_layer(index) == teacher.is_global_layer(layer)
    # The same layers are accepted as an explicit list.
    text = ",".join(map(str, chosen))
    assert from_teacher.choose_layers(teacher, None, text) == chosen


@pytest.mark.parametrize(
    ("student", "text", "received"),
    [
        (None, "0,3", "3: '0,3'"),
        (None, "0,1,2,4", "4: '0,1,2,4'"),
        (None, "3,4", "3: '3,4'"),
        (3, "last", "19: 'last'"),
        (None, "every:2", "1: 'every:2'"),
    ],
)
def test_layers_of_another_type_are_refused(student, text: str, received: str) -> None:
    with pytest.raises(InputError) as error:
        from_teacher.choose_layers(_teacher(22), student, text)
    assert error.value.subject == Setting("layer_map")
    assert error.value.received == received
    # The hint names layers that would be accepted.
    nearest = error.value.hint.rpartition(" ")[2]
    assert from_teacher.choose_layers(_teacher(22), None, nearest)


def test_first_layers_are_accepted() -> None:
    assert from_teacher.choose_layers(_teacher(22), 5, "first") == (0, 1, 2, 3, 4)


def test_narrower_student_keeps_rotated_pairs_and_both_halves_of_gated_units() -> None:
    teacher = example_config(
        "modernbert", hidden_size=16, num_attention_heads=2, intermediate_size=6
    )
    student = from_teacher.narrow_config(teacher, hidden_size=8, intermediate_size=4)
    weights = get_weights(MaskedLM(teacher, seed=3))
    narrow = from_teacher.narrow_weights(weights, teacher, student)
    # Heads of 8 dimensions become heads of 4, with pairs 0 and 2 of 4, whose angles stay.
    columns = [0, 2, 4, 6, 8, 10, 12, 14]
    name = "encoder/layer_1/attention/query_key_value/kernel"
    blocks = weights[name].reshape(16, 3, 16)
    np.testing.assert_array_equal(narrow[name], blocks[:8][..., columns].reshape(8, 24))
    name = "encoder/layer_1/attention/output/kernel"
    np.testing.assert_array_equal(narrow[name], weights[name][columns][:, :8])
    name = "encoder/layer_1/feed_forward/intermediate/kernel"
    halves = weights[name].reshape(16, 2, 6)[:8, :, :4]
    np.testing.assert_array_equal(narrow[name], halves.reshape(8, 8))
    angles = [
        config.global_rope_theta ** (-2 * pair / size)
        for config, pair, size in ((teacher, 2, 8), (student, 1, 4))
    ]
    assert angles[0] == pytest.approx(angles[1])


def test_odd_head_sizes_are_refused() -> None:
    teacher = example_config("modernbert", hidden_size=24, num_attention_heads=2)
    with pytest.raises(InputError) as error:
        from_teacher.narrow_config(teacher, hidden_size=6)
    assert error.value.subject == Setting("student_hidden_size")
    assert error.value.received == 6


def test_student_of_all_layers_equals_the_teacher() -> None:
    model = MaskedLM(TINY, seed=2)
    weights = get_weights(model)
    config, same = from_teacher.student_weights(weights, TINY, layer_map=tuple(range(7)))
    assert config == TINY
    narrow = from_teacher.narrow_weights(same, config, config)
    assert narrow.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(narrow[name], value)
