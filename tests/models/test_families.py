"""Model families: declarations, names of weights, and differences from BERT's computation."""

import dataclasses
import importlib
import json
import pathlib
import pkgutil
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs.records import (
    INPUT_IDS,
    INPUT_MASK,
    MASKED_LM_POSITIONS,
    SEGMENT_IDS,
)
from pipeline.base.errors import InputError
from pipeline.models import families
from pipeline.models.architectures.components import ATTENTIONS
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES, REFUSED, find_family
from pipeline.models.formats.model_directory import (
    assign_weights,
    find_model,
    get_weights,
    load_masked_lm,
)
from pipeline.models.formats.model_directory import save_hf as save
from pipeline.models.initialization.from_teacher import student_weights
from pipeline.models.masked_lm import MaskedLM
from pipeline.models.relative_positions import distance_buckets
from pipeline.models.weight_names import (
    HF,
    SEGMENTS,
    TF1,
    check_tensors,
    encoder_table,
    tied_hf_names,
    weight_table,
)
from tests.family_examples import MOST_TOKENS, example_config
from tests.models.test_peers import assert_parity, load_torch

BERT = EncoderConfig(
    vocab_size=37,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    hidden_act="gelu",
    max_position_embeddings=20,
    type_vocab_size=1,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    initializer_range=0.4,
)
ROBERTA = dataclasses.replace(
    BERT, model_type="roberta", pad_token_id=1, max_position_embeddings=22
)
DISTILBERT = dataclasses.replace(BERT, model_type="distilbert", type_vocab_size=0)
ALBERT = dataclasses.replace(
    BERT, model_type="albert", embedding_size=6, type_vocab_size=2, num_hidden_layers=3
)


def _batch(pad_id: int, *, length: int = 12, segments: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    mask = np.ones((3, length), np.int32)
    mask[1, 9:] = 0
    ids = random.integers(2, 37, (3, length)).astype(np.int32)
    segment_ids = np.zeros((3, length), np.int32)
    segment_ids[2, 5:] = segments - 1
    return {
        INPUT_IDS: np.where(mask == 1, ids, pad_id).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: segment_ids,
        MASKED_LM_POSITIONS: np.array([[1, 4, 8]] * 3, np.int32),
    }


def test_weight_names_of_families_equal_published_names() -> None:
    roberta = {row.ours: row.hf for row in weight_table(ROBERTA)}
    assert roberta["encoder/embeddings/word_embeddings"] == (
        "roberta.embeddings.word_embeddings.weight"
    )
    assert roberta["encoder/layer_1/attention/output/kernel"] == (
        "roberta.encoder.layer.1.attention.output.dense.weight"
    )
    assert roberta["head/layer_norm/gamma"] == "lm_head.layer_norm.weight"
    assert roberta["head/bias"] == "lm_head.bias"
    assert tied_hf_names(ROBERTA) == {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    distilbert = {row.ours: row.hf for row in weight_table(DISTILBERT)}
    assert distilbert["encoder/layer_0/attention/query/bias"] == (
        "distilbert.transformer.layer.0.attention.q_lin.bias"
    )
    assert distilbert["encoder/layer_1/feed_forward/output/kernel"] == (
        "distilbert.transformer.layer.1.ffn.lin2.weight"
    )
    assert distilbert["head/transform/kernel"] == "vocab_transform.weight"
    assert distilbert["head/bias"] == "vocab_projector.bias"
    assert "encoder/embeddings/segment_embeddings" not in distilbert
    assert tied_hf_names(DISTILBERT) == {
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"
    }


def test_roberta_equals_bert_with_shifted_positions() -> None:
    roberta = MaskedLM(ROBERTA, seed=2)
    weights = get_weights(roberta)
    positions = "encoder/embeddings/position_embeddings"
    bert = MaskedLM(BERT)
    assign_weights(bert, {**weights, positions: weights[positions][2:]})
    batch = _batch(pad_id=1)
    np.testing.assert_allclose(roberta(batch), bert(batch), atol=1e-6)
    assert (ROBERTA.max_input_length, BERT.max_input_length) == (20, 20)


def test_distilbert_equals_bert_without_segments() -> None:
    distilbert = MaskedLM(DISTILBERT, seed=2)
    weights = get_weights(distilbert)
    bert = MaskedLM(BERT)
    segments = np.zeros((1, 16), np.float32)
    assign_weights(bert, {**weights, "encoder/embeddings/segment_embeddings": segments})
    batch = _batch(pad_id=0)
    np.testing.assert_allclose(distilbert(batch), bert(batch), atol=1e-6)


def test_albert_with_identity_projection_equals_a_bert_of_equal_layers() -> None:
    config = dataclasses.replace(ALBERT, embedding_size=16, type_vocab_size=1)
    albert = MaskedLM(config, seed=2)
    weights = get_weights(albert)
    projection = "encoder/embeddings/projection"
    weights[f"{projection}/kernel"], weights[f"{projection}/bias"] = np.eye(16), np.zeros(16)
    assign_weights(albert, weights)
    bert = MaskedLM(dataclasses.replace(BERT, num_hidden_layers=3))
    copied = {
        row.ours: weights[re.sub(r"layer_\d+/", "layer_0/", row.ours)]
        for row in weight_table(bert.config)
    }
    assign_weights(bert, copied)
    batch = _batch(pad_id=0)
    np.testing.assert_allclose(albert(batch), bert(batch), atol=1e-6)
    shapes = {row.ours: row.shape for row in weight_table(ALBERT)}
    assert shapes["encoder/embeddings/word_embeddings"] == (37, 6)
    assert shapes["head/transform/kernel"] == (16, 6)
    assert not any(name.startswith("encoder/layer_1") for name in shapes)


def _change_tensors(folder: pathlib.Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def test_ernies_task_embedding_is_added_to_its_segments(tmp_path) -> None:
    config = example_config("ernie")
    model = MaskedLM(config, seed=4)
    save(tmp_path, model)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["use_task_id"] is False
    tasks = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    name = "ernie.embeddings.task_type_embeddings.weight"
    _change_tensors(tmp_path, lambda tensors: {**tensors, name: tasks})
    # The table without its setting is refused, and so is the setting without its table.
    with pytest.raises(InputError) as error:
        find_model(tmp_path).read_weights()
    assert name in error.value.received
    settings |= {"use_task_id": True, "task_type_vocab_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    source = find_model(tmp_path)
    loaded, own = source.read_weights(), get_weights(model)
    segments = own.pop(SEGMENTS)
    np.testing.assert_array_equal(loaded.pop(SEGMENTS), segments + tasks[0])
    assert loaded.keys() == own.keys() and source.config == config
    assert source.open_files().describe_unused() is None
    _change_tensors(tmp_path, lambda tensors: {**tensors, name: tasks[:2]})
    with pytest.raises(InputError) as error:
        find_model(tmp_path).read_weights()
    assert f"{name}: expected [3, 16], received [2, 16]" in error.value.received
    settings |= {"task_type_vocab_size": "3"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as error:
        find_model(tmp_path).read_weights()
    assert error.value.subject == f"{tmp_path / 'config.json'}: task_type_vocab_size"
    assert error.value.received == "'3'"


def test_electras_discriminator_has_no_masked_lm_head(tmp_path) -> None:
    config = example_config("electra")
    model = MaskedLM(config, seed=4)
    save(tmp_path, model)

    def replace_head(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        encoder = {name: tensors[name] for name in tensors if name.startswith("electra.")}
        return encoder | {"discriminator_predictions.dense.weight": np.ones((16, 16), np.float32)}

    _change_tensors(tmp_path, replace_head)
    source = find_model(tmp_path)
    assert not source.has_head
    with pytest.raises(InputError) as error:
        source.read_weights()
    assert error.value.subject == str(tmp_path)
    assert "discriminator_predictions.dense.weight" in error.value.received
    loaded, own = source.read_weights(encoder_table(config)), get_weights(model)
    assert loaded and all(np.array_equal(own[name], value) for name, value in loaded.items())


def test_electra_projects_only_embeddings_of_another_width() -> None:
    for size, expected in ((6, True), (16, False)):
        config = example_config("electra", embedding_size=size)
        names = {row.hf for row in weight_table(config)}
        assert ("electra.embeddings_project.weight" in names) == expected == config.has_projection
    assert example_config("albert", embedding_size=16).has_projection


def test_mpnets_distance_buckets_equal_published_values() -> None:
    buckets = distance_buckets(200, 32)
    at = {distance: buckets[199 + distance] for distance in range(-199, 200)}
    assert [at[-distance] for distance in range(8)] == list(range(8))
    # From 8 on, each doubling of the distance has two buckets. From 91 on there is one bucket.
    starts = {8: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15}
    for start, bucket in starts.items():
        assert (at[1 - start], at[-start], at[start]) == (bucket - 1, bucket, bucket + 16)
    assert at[-199] == 15 and at[199] == 31


def test_mpnets_distance_bias_changes_attention() -> None:
    config = example_config("mpnet", num_hidden_layers=1)
    model = MaskedLM(config, seed=2)
    weights = get_weights(model)
    biases = "encoder/relative_positions/bias"
    # Only the first head gets a bias, for keys two tokens after the query.
    weights[biases] = np.zeros((32, 2), np.float32)
    before = _attention(model, weights)
    weights[biases][16 + 2, 0] = 50.0
    after = _attention(model, weights)
    np.testing.assert_allclose(after[0, 1], before[0, 1], atol=1e-6)
    np.testing.assert_allclose(np.diagonal(after[0, 0], offset=2), 1.0, atol=1e-6)


def _attention(model: MaskedLM, weights: dict[str, np.ndarray]) -> np.ndarray:
    assign_weights(model, weights)
    outputs = model.activations(_batch(pad_id=1), wanted=(ATTENTIONS,))
    return np.asarray(outputs[ATTENTIONS][0])


def test_robertas_head_always_uses_gelu() -> None:
    assert dataclasses.replace(ROBERTA, hidden_act="relu").head_act == "gelu"
    assert dataclasses.replace(BERT, hidden_act="relu").head_act == "relu"


def test_every_family_module_is_in_the_table() -> None:
    modules = {name for _, name, _ in pkgutil.iter_modules(families.__path__)} - {"base"}
    declared = {
        importlib.import_module(f"{families.__name__}.{name}").FAMILY.model_type for name in modules
    }
    assert declared == set(FAMILIES)
    assert len(modules) == len(FAMILIES)
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type


def test_error_of_an_unknown_family_lists_supported_families() -> None:
    for value in ("t5", [], None):
        with pytest.raises(InputError) as error:
            find_family(value)
        assert error.value.subject == "model_type"
        assert all(name in error.value.expected for name in FAMILIES)
        assert error.value.hint is None


@pytest.mark.parametrize("model_type", REFUSED)
def test_error_of_a_refused_family_gives_the_reason(model_type: str) -> None:
    assert model_type not in FAMILIES
    with pytest.raises(InputError) as error:
        find_family(model_type)
    assert (error.value.subject, error.value.received) == ("model_type", repr(model_type))
    assert error.value.hint == REFUSED[model_type]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weight_names_are_unique_and_surplus_encoder_weights_are_refused(
    model_type: str, tmp_path
) -> None:
    config = example_config(model_type)
    table = weight_table(config)
    for layout in (HF, TF1):
        assert len(dict(row.stored(layout) for row in table)) == len(table)
    for row in table:
        surplus = {row.hf: row.stored(HF)[1] for row in table} | {f"{row.hf}.x": (1,)}
        if row.ours.startswith("encoder/"):
            with pytest.raises(InputError):
                check_tensors(surplus, table, layout=HF, where=tmp_path)
        else:
            check_tensors(surplus, table, layout=HF, where=tmp_path)
    originals = set(tied_hf_names(config).values())
    assert originals and originals <= {row.hf for row in table}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_configuration_and_weights_survive_a_round_trip(
    tmp_path: pathlib.Path, model_type: str
) -> None:
    config = example_config(model_type)
    model = MaskedLM(config, seed=4)
    save(tmp_path, model)
    source = find_model(tmp_path)
    assert source.config == config
    batch = _batch(config.pad_token_id)
    np.testing.assert_array_equal(load_masked_lm(source)(batch), model(batch))
    config, weights = student_weights(source.read_weights(), source.config, layer_map=(1,))
    student = MaskedLM(config)
    assign_weights(student, weights)
    assert np.isfinite(np.asarray(student(batch))).all()


@pytest.mark.parametrize(
    ("changes", "key", "received"),
    [
        ({"model_type": "t5"}, "model_type", "'t5'"),
        ({"max_position_embeddings": 2}, "max_position_embeddings", "2"),
        ({"vocab_size": None}, "vocab_size", "none, the key is missing"),
        ({"model_type": "albert"}, "embedding_size", "None"),
        ({"model_type": "albert", "num_hidden_groups": 2}, "num_hidden_groups", "2"),
    ],
)
def test_configurations_that_a_family_does_not_allow_are_refused(
    tmp_path, changes: dict, key: str, received: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**ROBERTA.to_hf(), **changes}))
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(path)
    assert (error.value.subject, error.value.received) == (f"{path}: {key}", received)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"embedding_size": 8}, "embedding_size"),
        ({"model_type": "distilbert"}, "type_vocab_size"),
        ({"model_type": "albert"}, "embedding_size"),
        ({"model_type": "albert", "embedding_size": True}, "embedding_size"),
    ],
)
def test_fields_of_other_families_and_missing_fields_are_refused(changes: dict, key: str) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(BERT, **changes)
    assert error.value.subject == key


def test_distilberts_configuration_keys_are_read_and_written(tmp_path) -> None:
    path = tmp_path / "config.json"
    written = DISTILBERT.to_hf()
    assert (written["dim"], written["n_layers"], written["activation"]) == (16, 2, "gelu")
    path.write_text(json.dumps(written))
    assert EncoderConfig.from_json(path) == DISTILBERT
    path.write_text(json.dumps({key: value for key, value in written.items() if key != "dim"}))
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(path)
    assert error.value.subject == f"{path}: dim"


@pytest.mark.peers
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_of_each_family_equals_transformers(tmp_path, family: str, tied: bool) -> None:
    """Reads models of `transformers`, and lets `transformers` read ours without unused weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = example_config(family, initializer_range=0.2, tie_word_embeddings=tied)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    settings = transformers.AutoConfig.for_model(
        **{key: value for key, value in config.to_hf().items() if key != "architectures"}
    )
    theirs = transformers.AutoModelForMaskedLM.from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Biases and norms start at 0 and 1, which would hide a mistake.
            if "bias" in name or "norm" in name.lower():
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    source = find_model(tmp_path / "theirs")
    assert source.config.tie_word_embeddings == tied
    ours = load_masked_lm(source)
    save(tmp_path / "ours", ours)
    segments = max(1, config.type_vocab_size)
    for length in (12, MOST_TOKENS):
        batch = _batch(config.pad_token_id, length=length, segments=segments)
        for peer in (theirs, load_torch(tmp_path / "ours")):
            assert_parity(ours, peer, batch, atol=1e-5)
