"""Comparisons with torch and transformers, and with public models; opt-in."""

import dataclasses
import pathlib

import numpy as np
import pytest

from data_specs.records import (
    HIDDEN_STATES,
    INPUT_IDS,
    INPUT_MASK,
    MASKED_LM_POSITIONS,
    SEGMENT_IDS,
)
from pipeline.base.location import Location
from pipeline.models.architectures.components import (
    ATTENTION_SCORES,
    ATTENTIONS,
    QUERIES_KEYS_VALUES,
)
from pipeline.models.formats.model_directory import (
    assign_weights,
    find_model,
    get_weights,
    load_masked_lm,
    save_hf,
)
from pipeline.models.initialization.from_teacher import default_layer_map, student_weights
from pipeline.models.masked_lm import LOGITS, MaskedLM

SHARED = pathlib.Path(__file__).parents[3] / "shared"


def make_batch(vocab_size: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(8)
    mask = np.ones((4, length), np.int32)
    mask[1, length - 3 :] = 0
    segments = np.zeros((4, length), np.int32)
    segments[2:, length // 2 :] = 1
    return {
        INPUT_IDS: random.integers(0, vocab_size, (4, length)).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: segments,
        MASKED_LM_POSITIONS: np.sort(random.integers(0, length - 3, (4, 5))).astype(np.int32),
    }


def run_torch(model, batch: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Returns logits at the masked positions, hidden states and attention maps of a torch model."""
    import torch

    # A model without segments has no such argument.
    ids = torch.tensor(batch[SEGMENT_IDS]).long()
    segments = {"token_type_ids": ids} if ids.any() else {}
    with torch.no_grad():
        output = model.eval()(
            input_ids=torch.tensor(batch[INPUT_IDS]).long(),
            attention_mask=torch.tensor(batch[INPUT_MASK]),
            **segments,
            output_hidden_states=True,
            output_attentions=True,
        )
    positions = batch[MASKED_LM_POSITIONS][:, :, None]
    return {
        LOGITS: [np.take_along_axis(output.logits.numpy(), positions, axis=1)],
        HIDDEN_STATES: [state.numpy() for state in output.hidden_states],
        ATTENTIONS: [attention.numpy() for attention in output.attentions],
    }


def load_torch(directory: pathlib.Path):
    """Loads a directory with `transformers`; no weights may be missing or unused."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    return model


def assert_parity(model: MaskedLM, peer, batch: dict[str, np.ndarray], *, atol: float) -> None:
    ours = model.activations(batch, wanted=(ATTENTIONS,))
    ours[LOGITS] = [ours[LOGITS]]
    theirs = run_torch(peer, batch)
    real = batch[INPUT_MASK] == 1
    # Only real tokens are compared; those of an attention map are its queries.
    seen = {LOGITS: ..., HIDDEN_STATES: real, ATTENTIONS: real}
    differences = {}
    for name, place in seen.items():
        assert len(ours[name]) == len(theirs[name])
        pairs = zip(map(np.asarray, ours[name]), theirs[name], strict=True)
        if name == ATTENTIONS:
            pairs = ((np.moveaxis(own, 1, 2), np.moveaxis(peer, 1, 2)) for own, peer in pairs)
        differences[name] = max(float(np.abs(own - peer)[place].max()) for own, peer in pairs)
    print("max abs differences", differences)
    assert max(differences.values()) < atol


# Modules of `transformers` whose outputs are the queries, keys and values.
_PROJECTIONS = {
    "bert": ("bert.encoder.layer.{}.attention.self.", ("query", "key", "value")),
    "modernbert": ("model.layers.{}.attn.", ("Wqkv",)),
}


@pytest.mark.peers
@pytest.mark.parametrize("model_type", _PROJECTIONS)
def test_queries_keys_and_values_equal_those_of_transformers(tmp_path, model_type: str) -> None:
    """They are compared before rotation and scaling. Scores are compared for BERT."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"vocab_size": 53, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    settings = transformers.AutoConfig.for_model(
        model_type, **sizes, intermediate_size=40, initializer_range=0.3, pad_token_id=0
    )
    peer = transformers.AutoModelForMaskedLM.from_config(settings, attn_implementation="eager")
    peer.save_pretrained(tmp_path)
    prefix, names = _PROJECTIONS[model_type]
    seen: list = []
    for layer in range(3):
        for name in names:
            module = peer.get_submodule(prefix.format(layer) + name)
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    batch = make_batch(53, 17)
    if model_type == "modernbert":
        batch[SEGMENT_IDS][:] = 0
    run_torch(peer, batch)
    theirs = torch.cat(seen, dim=-1).reshape(4, 17, 3, 3, 24).numpy()
    wanted = (*QUERIES_KEYS_VALUES, ATTENTION_SCORES)
    ours = load_masked_lm(find_model(tmp_path)).activations(batch, wanted=wanted)
    real = batch[INPUT_MASK] == 1
    for layer in range(3):
        for index, name in enumerate(QUERIES_KEYS_VALUES):
            difference = np.abs(np.asarray(ours[name][layer]) - theirs[:, :, layer, index])
            assert difference[real].max() < 2e-5, (layer, name)
    if model_type == "bert":
        queries, keys = (
            np.moveaxis(theirs[:, :, 0, index].reshape(4, 17, 3, 8), 2, 1) for index in range(2)
        )
        scores = queries @ np.swapaxes(keys, 2, 3) / np.sqrt(8)
        pairs = np.abs(np.asarray(ours[ATTENTION_SCORES][0]) - scores)
        assert np.moveaxis(pairs, 1, 2)[real].max() < 1e-4


@pytest.mark.peers
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_model_of_transformers_is_read_with_equal_outputs(tmp_path, hidden_act):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    settings = transformers.BertConfig(
        vocab_size=53,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=19,
        hidden_act=hidden_act,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    peer = transformers.BertForMaskedLM(settings)
    peer.save_pretrained(tmp_path)
    model = load_masked_lm(find_model(tmp_path))
    assert_parity(model, peer, make_batch(53, 17), atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("num_layers", [2, 3])
def test_saved_models_and_students_equal_transformers(
    tmp_path, config, weights, hidden_act: str, num_layers: int
) -> None:
    config = dataclasses.replace(config, hidden_act=hidden_act)
    layer_map = default_layer_map(config.num_hidden_layers, num_layers)
    config, weights = student_weights(weights, config, layer_map=layer_map)
    model = MaskedLM(config)
    assign_weights(model, {name: 0.7 * value for name, value in weights.items()})
    save_hf(tmp_path, model)
    peer = load_torch(tmp_path)
    assert type(peer).__name__ == "BertForMaskedLM"
    assert_parity(model, peer, make_batch(37, 17), atol=1e-5)


@pytest.mark.shared
def test_public_tf1_checkpoint_is_read_into_the_model():
    source = find_model(Location.parse(SHARED / "data/fixtures/tf1_tiny_ckpt"))
    model = load_masked_lm(source)
    stored = source.read_weights()
    for name, value in get_weights(model).items():
        np.testing.assert_array_equal(value, stored[name])
    batch = make_batch(source.config.vocab_size, 12)
    assert np.isfinite(np.asarray(model(batch))).all()


@pytest.mark.shared
@pytest.mark.peers
def test_public_teacher_equals_transformers():
    directory = Location.parse(SHARED / "models/zh-bert-4L-256")
    model = load_masked_lm(find_model(directory))
    # The logits reach 20, where the rounding error of float32 is 2e-6.
    assert_parity(model, load_torch(directory), make_batch(21_128, 64), atol=3e-5)
