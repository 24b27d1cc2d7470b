"""Model families: declarations, names of weights, and what each computes beside BERT."""

import dataclasses
import importlib
import json
import pathlib
import pkgutil
import re

import numpy as np
import pytest

from data_specs.records import (
    INPUT_IDS,
    INPUT_MASK,
    MASKED_LM_POSITIONS,
    SEGMENT_IDS,
)
from pipeline.base.errors import InputError
from pipeline.models import families
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
from pipeline.models.weight_names import HF, TF1, check_tensors, tied_hf_names, weight_table
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


def test_names_by_hand() -> None:
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


def test_roberta_is_bert_with_shifted_positions() -> None:
    roberta = MaskedLM(ROBERTA, seed=2)
    weights = get_weights(roberta)
    positions = "encoder/embeddings/position_embeddings"
    bert = MaskedLM(BERT)
    assign_weights(bert, {**weights, positions: weights[positions][2:]})
    batch = _batch(pad_id=1)
    np.testing.assert_allclose(roberta(batch), bert(batch), atol=1e-6)
    assert (ROBERTA.max_input_length, BERT.max_input_length) == (20, 20)


def test_distilbert_is_bert_without_segments() -> None:
    distilbert = MaskedLM(DISTILBERT, seed=2)
    weights = get_weights(distilbert)
    bert = MaskedLM(BERT)
    segments = np.zeros((1, 16), np.float32)
    assign_weights(bert, {**weights, "encoder/embeddings/segment_embeddings": segments})
    batch = _batch(pad_id=0)
    np.testing.assert_allclose(distilbert(batch), bert(batch), atol=1e-6)


def test_an_albert_of_unit_projections_is_a_bert_of_equal_layers() -> None:
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


def test_robertas_head_has_gelu_whatever_its_layers_have() -> None:
    assert dataclasses.replace(ROBERTA, hidden_act="relu").head_act == "gelu"
    assert dataclasses.replace(BERT, hidden_act="relu").head_act == "relu"


def test_every_module_of_the_package_is_in_the_table() -> None:
    modules = {name for _, name, _ in pkgutil.iter_modules(families.__path__)} - {"base"}
    declared = {
        importlib.import_module(f"{families.__name__}.{name}").FAMILY.model_type for name in modules
    }
    assert declared == set(FAMILIES)
    assert len(modules) == len(FAMILIES)
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    for value in ("t5", [], None):
        with pytest.raises(InputError) as error:
            find_family(value)
        assert error.value.subject == "model_type"
        assert all(name in error.value.expected for name in FAMILIES)
        assert error.value.hint is None


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_family_is_refused_with_its_reason(model_type: str) -> None:
    assert model_type not in FAMILIES
    with pytest.raises(InputError) as error:
        find_family(model_type)
    assert (error.value.subject, error.value.received) == ("model_type", repr(model_type))
    assert error.value.hint == REFUSED[model_type]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_of_weights_are_unique_and_surplus_ones_of_the_encoder_refused(
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
def test_configuration_and_weights_come_back_as_they_were_written(
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
def test_configurations_that_a_family_does_not_allow(
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
def test_fields_that_a_family_does_not_have_or_lacks(changes: dict, key: str) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(BERT, **changes)
    assert error.value.subject == key


def test_distilberts_own_keys(tmp_path) -> None:
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
def test_a_model_of_each_family_is_the_same_in_transformers(
    tmp_path, family: str, tied: bool
) -> None:
    """Both ways: theirs read here, and ours read there with nothing missing or left over."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = dataclasses.replace(example_config(family), tie_word_embeddings=tied)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    settings = transformers.AutoConfig.for_model(
        **{key: value for key, value in config.to_hf().items() if key != "architectures"}
    )
    theirs = transformers.AutoModelForMaskedLM.from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Biases start at 0, which would hide a mistake.
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
