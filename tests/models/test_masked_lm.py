"""The model's outputs equal those of `transformers`, which are stored in `golden_*.npz`."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_specs import records
from data_specs.records import HIDDEN_STATES
from pipeline.base.location import Location
from pipeline.models.architectures.components import (
    ATTENTION_SCORES,
    ATTENTIONS,
    QUERIES_KEYS_VALUES,
)
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import LOGITS, MaskedLM

QUERIES, KEYS, VALUES = QUERIES_KEYS_VALUES
GOLDEN = {
    path.stem.removeprefix("golden_"): path
    for path in sorted(pathlib.Path(__file__).parent.glob("golden_*.npz"))
}
CONFIG_FILE = pathlib.Path(__file__).with_name("small_config.json")


@pytest.fixture(params=["bert", "modernbert"])
def golden(request) -> dict[str, np.ndarray]:
    """Weights, inputs and outputs of a model of each architecture; see make_golden.py."""
    with np.load(GOLDEN[request.param], allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def golden_dir(golden, tmp_path) -> pathlib.Path:
    """The golden model as a Hugging Face directory."""
    prefix = "weights/"
    weights = {
        name.removeprefix(prefix): value
        for name, value in golden.items()
        if name.startswith(prefix)
    }
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model_type": "bert", **json.loads(golden["config"].tobytes())}
    # The golden file stores only differences from the defaults of `transformers`.
    config.setdefault("type_vocab_size", 2)
    config.setdefault("hidden_act", "gelu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def _inputs(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    length = golden["input_ids"].shape[1]
    positions = np.tile(np.arange(length, dtype="int32"), (3, 1))
    names = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
    return {
        **{name: golden[name].astype("int32") for name in names},
        records.MASKED_LM_POSITIONS: positions,
    }


@pytest.mark.parametrize("golden", GOLDEN, indirect=True)
def test_logits_and_states_equal_those_of_transformers(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs = _inputs(golden)
    real = golden["input_mask"].astype(bool)
    outputs = model.activations(inputs, wanted=(ATTENTIONS,))
    logits, states = np.asarray(outputs[LOGITS]), outputs[HIDDEN_STATES]
    np.testing.assert_allclose(logits[real], golden["logits"][real], atol=1e-5)
    for state, expected in zip(states, golden["hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(state)[real], expected[real], atol=1e-5)
    # Some files hold no attention maps.
    maps = golden.get("attentions", ())
    for own, expected in zip(outputs[ATTENTIONS], maps, strict=bool(len(maps))):
        rows = (np.moveaxis(heads, 1, 2)[real] for heads in (np.asarray(own), expected))
        np.testing.assert_allclose(*rows, atol=1e-5)


def _heads(tensor: object, count: int) -> np.ndarray:
    array = np.asarray(tensor)
    return np.moveaxis(array.reshape(*array.shape[:2], count, -1), 1, 2)


@pytest.mark.parametrize("golden", ["bert"], indirect=True)
def test_attention_maps_and_scores_follow_from_queries_and_keys(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs = _inputs(golden)
    wanted = (ATTENTIONS, ATTENTION_SCORES, *QUERIES_KEYS_VALUES)
    outputs = model.activations(inputs, wanted=wanted)
    heads = model.config.num_attention_heads
    for layer in range(model.config.num_hidden_layers):
        queries, keys = (_heads(outputs[name][layer], heads) for name in (QUERIES, KEYS))
        scores = queries @ np.swapaxes(keys, 2, 3) / np.sqrt(queries.shape[-1])
        np.testing.assert_allclose(outputs[ATTENTION_SCORES][layer], scores, atol=1e-5)
        weights = np.exp(scores) * golden["input_mask"][:, None, None]
        expected = weights / weights.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(outputs[ATTENTIONS][layer], expected, atol=1e-5)


@pytest.mark.parametrize("golden", GOLDEN, indirect=True)
def test_only_wanted_attention_activations_are_returned(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs, size = _inputs(golden), model.config.hidden_size
    plain = model.activations(inputs)
    assert not plain.keys() & {ATTENTIONS, ATTENTION_SCORES, *QUERIES_KEYS_VALUES}
    asked = model.activations(inputs, wanted=(ATTENTION_SCORES, VALUES))
    assert asked.keys() - plain.keys() == {ATTENTION_SCORES, VALUES}
    shape = inputs[records.INPUT_IDS].shape
    assert [tensor.shape for tensor in asked[VALUES]] == [(*shape, size)] * len(asked[VALUES])
    assert len(asked[VALUES]) == model.config.num_hidden_layers
    np.testing.assert_array_equal(asked[LOGITS], plain[LOGITS])


def test_logits_follow_the_order_of_masked_positions(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    positions = np.array([[3, 1], [0, 0], [2, 3]], "int32")
    logits = np.asarray(model({**_inputs(golden), records.MASKED_LM_POSITIONS: positions}))
    expected = np.take_along_axis(golden["logits"], positions[..., None], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_padding_does_not_change_outputs(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs = _inputs(golden)
    cut = {name: value[2:, :4] for name, value in inputs.items()}
    whole = np.asarray(model(inputs))[2:, :4]
    np.testing.assert_allclose(np.asarray(model(cut)), whole, atol=1e-5)


def test_float32_logits_stay_exact_under_mixed_precision(golden, golden_dir) -> None:
    source = model_directory.find_model(golden_dir)
    inputs, real = _inputs(golden), golden["input_mask"].astype(bool)
    errors = {}
    for logits_dtype in (None, "float32"):
        model = model_directory.load_masked_lm(
            source, dtype="mixed_bfloat16", logits_dtype=logits_dtype
        )
        logits = np.asarray(model(inputs))
        assert logits.dtype == np.float32
        errors[logits_dtype] = np.abs(logits - golden["logits"])[real].mean()
    assert errors["float32"] < errors[None]


def test_dropout_is_seeded_and_active_only_in_training() -> None:
    config = EncoderConfig.from_json(Location.parse(CONFIG_FILE))
    inputs = {
        name: np.ones((2, 6), "int32")
        for name in (records.INPUT_IDS, records.INPUT_MASK, records.MASKED_LM_POSITIONS)
    }
    inputs[records.SEGMENT_IDS] = np.zeros((2, 6), "int32")
    model, same, other = (MaskedLM(config, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(model(inputs), same(inputs))
    assert np.abs(np.asarray(model(inputs)) - np.asarray(other(inputs))).max() > 0
    first, second = model(inputs, training=True), model(inputs, training=True)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 0
    np.testing.assert_array_equal(first, same(inputs, training=True))
    np.testing.assert_array_equal(model(inputs), same(inputs))
