"""Task heads: layouts by hand and against `transformers`, and initial weights."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from data_specs.tasks import CLASSIFICATION, REGRESSION, SPAN, TOKEN_CLASSIFICATION
from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource, find_model
from pipeline.models.masked_lm import MaskedLM
from pipeline.models.weight_names import weight_table
from tests.family_examples import example_config
from tools.convert_checkpoint import google_config
from tools.finetuning import heads
from tools.finetuning.head_layout import (
    Head,
    dropout_rate,
    head_settings,
    head_table,
    read_head,
)

SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 20, "type_vocab_size": 2}
RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.4}
BERT = EncoderConfig(**SIZES, **RATES, hidden_act="gelu")
EXAMPLES = {name: example_config(name) for name in FAMILIES}
LABELS = ("no", "perhaps", "yes")
HEADS = {CLASSIFICATION: Head(CLASSIFICATION, LABELS), REGRESSION: Head(REGRESSION)}
HEADS[SPAN] = Head(SPAN)
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
HEADS[TOKEN_CLASSIFICATION] = Head(TOKEN_CLASSIFICATION, TAGS)
Batch = dict[str, np.ndarray]


def make_batch(config: EncoderConfig) -> Batch:
    random = np.random.default_rng(3)
    mask = np.ones((3, 12), np.int32)
    mask[1, 9:] = 0
    ids = random.integers(2, 37, (3, 12)).astype(np.int32)
    segments = np.zeros((3, 12), np.int32)
    segments[2, 5:] = int(config.type_vocab_size > 1)
    return {
        INPUT_IDS: np.where(mask == 1, ids, config.pad_token_id).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: segments,
    }


def random_model(config: EncoderConfig, kind: str, *, seed: int = 4) -> heads.TaskModel:
    source = ModelSource(config, "safetensors", (), None, pathlib.Path())
    return heads.build_head(source, HEADS[kind], seed=seed)


def saved(folder: pathlib.Path, config: EncoderConfig, kind: str) -> heads.TaskModel:
    model = random_model(config, kind)
    heads.save_head(folder, model)
    return model


def load(folder: pathlib.Path, kind: str, **settings: object) -> heads.TaskModel:
    return heads.build_head(find_model(folder), HEADS[kind], **settings)


def test_head_weights_have_published_names() -> None:
    for family, kind, names in (
        ("bert", CLASSIFICATION, ("bert.pooler.dense", "classifier")),
        ("roberta", CLASSIFICATION, ("classifier.dense", "classifier.out_proj")),
        ("distilbert", REGRESSION, ("pre_classifier", "classifier")),
        ("albert", CLASSIFICATION, ("albert.pooler", "classifier")),
        ("mpnet", REGRESSION, ("classifier.dense", "classifier.out_proj")),
        *((name, SPAN, ("qa_outputs",)) for name in FAMILIES if name != "modernbert"),
        *(
            (name, TOKEN_CLASSIFICATION, ("classifier",))
            for name in FAMILIES
            if name != "modernbert"
        ),
    ):
        expected = [f"{name}.{parameter}" for name in names for parameter in ("weight", "bias")]
        assert [row.hf for row in head_table(EXAMPLES[family], HEADS[kind])] == expected
    outputs = ["classifier.weight", "classifier.bias"]
    for kind in HEADS:
        names = [row.hf for row in head_table(EXAMPLES["modernbert"], HEADS[kind])]
        assert names == ["head.dense.weight", "head.norm.weight", *outputs]


def test_head_settings_equal_those_of_transformers() -> None:
    settings = head_settings(EXAMPLES["distilbert"], HEADS[CLASSIFICATION])
    assert settings["architectures"] == ["DistilBertForSequenceClassification"]
    assert settings["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
    assert settings["label2id"] == {"no": 0, "perhaps": 1, "yes": 2}
    assert settings["problem_type"] == "single_label_classification"
    assert settings["seq_classif_dropout"] == 0.2
    settings = head_settings(EXAMPLES["distilbert"], HEADS[SPAN])
    assert settings["architectures"] == ["DistilBertForQuestionAnswering"]
    assert settings["qa_dropout"] == 0.1
    settings = head_settings(EXAMPLES["distilbert"], HEADS[TOKEN_CLASSIFICATION])
    assert settings["architectures"] == ["DistilBertForTokenClassification"]
    assert settings["id2label"] == {str(index): tag for index, tag in enumerate(TAGS)}
    assert not {"problem_type", "qa_dropout", "seq_classif_dropout"} & set(settings)
    settings = head_settings(BERT, HEADS[REGRESSION])
    assert settings["id2label"] == {"0": "LABEL_0"} and settings["problem_type"] == "regression"
    assert settings["classifier_dropout"] == 0.1
    # MPNet's head has the dropout rate of its hidden states.
    config = dataclasses.replace(EXAMPLES["mpnet"], hidden_dropout_prob=0.3)
    settings = head_settings(config, HEADS[CLASSIFICATION])
    assert settings["hidden_dropout_prob"] == 0.3 and "classifier_dropout" not in settings
    assert dropout_rate(config, CLASSIFICATION) == 0.3 and dropout_rate(config, SPAN) == 0.0
    assert dropout_rate(config, TOKEN_CLASSIFICATION) == 0.3
    # DistilBERT's and ALBERT's heads have their own keys.
    for name, rate in (("distilbert", 0.3), ("albert", 0.1), ("bert", 0.1)):
        config = dataclasses.replace(EXAMPLES[name], hidden_dropout_prob=0.3)
        assert dropout_rate(config, TOKEN_CLASSIFICATION) == rate
    settings = head_settings(EXAMPLES["albert"], HEADS[TOKEN_CLASSIFICATION])
    assert settings["classifier_dropout_prob"] == 0.1 and "classifier_dropout" not in settings


@pytest.mark.parametrize("has_pooler", [True, False])
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_head_is_added_to_a_model_without_one(tmp_path, prefix: str, has_pooler: bool) -> None:
    """The encoder has the layout of `BertModel.save_pretrained` or of a sentence encoder."""
    weights = model_directory.get_weights(saved(tmp_path, BERT, CLASSIFICATION))
    tensors = load_file(tmp_path / "model.safetensors")
    encoder = {
        name.replace("bert.", prefix, 1): value
        for name, value in tensors.items()
        if name.startswith("bert.") and (has_pooler or "pooler" not in name)
    }
    save_file(encoder, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(BERT.to_hf() | {"architectures": ["BertModel"]})
    )
    assert read_head(find_model(tmp_path)) is None
    loaded_weights = model_directory.get_weights(load(tmp_path, CLASSIFICATION, seed=9))
    for name, value in weights.items():
        is_stored = name.startswith("encoder/") or (has_pooler and "dense" in name)
        # Biases are initialized with zeros.
        if is_stored or name.endswith("kernel"):
            assert np.array_equal(loaded_weights[name], value) == is_stored, name


def test_null_label_names_give_unnamed_labels(tmp_path) -> None:
    saved(tmp_path, BERT, CLASSIFICATION)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"id2label": None}))
    assert read_head(find_model(tmp_path)) == Head(CLASSIFICATION, ("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_head_is_loaded_with_equal_logits(tmp_path, family: str, kind: str) -> None:
    config = EXAMPLES[family]
    model = saved(tmp_path, config, kind)
    source = find_model(tmp_path)
    assert source.config == config
    assert read_head(source) == HEADS[kind]
    again = load(tmp_path, kind, seed=9, keep_head=True)
    batch = make_batch(config)
    first, second = (np.asarray(head_model(batch)) for head_model in (model, again))
    shapes = {SPAN: (3, 2, 12), TOKEN_CLASSIFICATION: (3, 12, len(TAGS))}
    assert first.shape == shapes.get(kind, (3, HEADS[kind].num_outputs)) and first.std() > 0.01
    np.testing.assert_array_equal(first, second)
    # Without `keep_head`, the encoder is loaded and the head has new weights.
    other_weights = model_directory.get_weights(load(tmp_path, kind, seed=9))
    own = model_directory.get_weights(model)
    for name, value in own.items():
        same = np.array_equal(value, other_weights[name])
        # The first layer of BERT's head is its pooler; ModernBERT takes its masked-LM head's.
        pooler = config.family.sequence_head.is_pretrained and not name.startswith("head/output")
        expected = name.startswith("encoder/") or pooler or name.endswith("bias")
        assert same == expected, name


def test_padding_does_not_change_the_logits() -> None:
    batch = make_batch(BERT)
    for kind in HEADS:
        model = random_model(BERT, kind)
        changed = {**batch, INPUT_IDS: batch[INPUT_IDS] + (1 - batch[INPUT_MASK]) * 5}
        first, second = (np.asarray(model(inputs)) for inputs in (batch, changed))
        if kind == SPAN:
            first, second = (value[:, :, :9] for value in (first, second))
        if kind == TOKEN_CLASSIFICATION:
            first, second = (value[:, :9] for value in (first, second))
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_seed_decides_the_weights_of_a_new_head() -> None:
    first_weights, repeated_weights, other_weights = (
        model_directory.get_weights(random_model(BERT, CLASSIFICATION, seed=seed))
        for seed in (4, 4, 5)
    )
    for name in ("head/dense/kernel", "head/output/kernel"):
        np.testing.assert_array_equal(first_weights[name], repeated_weights[name])
        assert not np.array_equal(first_weights[name], other_weights[name])
        # BERT's truncated normal distribution; its standard deviation is 0.4 here.
        assert 0.2 < first_weights[name].std() < 0.5 and np.abs(first_weights[name]).max() < 0.9
    assert not first_weights["head/output/bias"].any()


def test_dropout_is_applied_before_the_output_layer() -> None:
    still = dataclasses.replace(BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = make_batch(still)
    model, again = (random_model(still, CLASSIFICATION) for _ in range(2))
    first = np.asarray(model(batch, training=True))
    np.testing.assert_array_equal(first, np.asarray(again(batch, training=True)))
    assert not np.allclose(first, np.asarray(model(batch, training=False)))
    # BERT's span head has no dropout.
    model = random_model(still, SPAN)
    first, second = (np.asarray(model(batch, training=flag)) for flag in (True, False))
    np.testing.assert_array_equal(first, second)


def _with_pooler(folder: pathlib.Path, scale: float) -> np.ndarray:
    """Writes a masked LM whose file also has a pooler, and returns the pooler's kernel."""
    model_directory.save_hf(folder, MaskedLM(BERT, seed=1))
    random = np.random.default_rng(6)
    kernel = (scale * random.normal(size=(16, 16))).astype(np.float32)
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = np.ascontiguousarray(kernel.T)
    tensors["bert.pooler.dense.bias"] = np.full(16, scale, np.float32)
    save_file(tensors, folder / "model.safetensors")
    return kernel


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_pooler_of_a_checkpoint_is_used_unless_zero(tmp_path, scale: float) -> None:
    kernel = _with_pooler(tmp_path, scale)
    assert read_head(find_model(tmp_path)) is None
    weights = model_directory.get_weights(load(tmp_path, CLASSIFICATION))
    assert np.array_equal(weights["head/dense/kernel"], kernel) == bool(scale)
    assert (weights["head/dense/bias"] == scale).all() and weights["head/dense/kernel"].std() > 0.2
    # A span head has no pooler.
    load(tmp_path, SPAN)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_pooler_of_a_google_checkpoint_is_used_unless_zero(tmp_path, scale: float) -> None:
    import tensorflow as tf

    weights = model_directory.get_weights(MaskedLM(BERT, seed=1))
    tensors = {row.tf1: weights[row.ours] for row in weight_table(BERT)}
    kernel = (scale * np.random.default_rng(6).normal(size=(16, 16))).astype(np.float32)
    tensors["bert/pooler/dense/kernel"] = kernel
    tensors["bert/pooler/dense/bias"] = np.zeros(16, np.float32)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "bert_model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    (tmp_path / "bert_config.json").write_text(json.dumps(google_config(BERT)))
    assert read_head(find_model(tmp_path)) is None
    loaded_weights = model_directory.get_weights(load(tmp_path, CLASSIFICATION))
    for name, value in weights.items():
        if name.startswith("encoder/"):
            np.testing.assert_array_equal(loaded_weights[name], value)
    assert np.array_equal(loaded_weights["head/dense/kernel"], kernel) == bool(scale)
    assert loaded_weights["head/dense/kernel"].std() > 0.2


@pytest.mark.parametrize(
    "labels", [["a", "b"], {"0": "a", "2": "b"}, {"x": "a"}, {"0": "a", "01": "b"}, 3]
)
def test_malformed_label_names_are_refused(tmp_path, labels: object) -> None:
    saved(tmp_path, BERT, CLASSIFICATION)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    message = f"{path}: id2label: expected names of 0, 1, …, received {labels}"
    with pytest.raises(InputError, match=re.escape(message)):
        read_head(find_model(tmp_path))


@pytest.mark.parametrize("labels", [{}, None])
def test_missing_label_names_give_two_unnamed_labels(tmp_path, labels: object) -> None:
    saved(tmp_path, BERT, CLASSIFICATION)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    assert read_head(find_model(tmp_path)).labels == ("LABEL_0", "LABEL_1")


def test_num_labels_alone_gives_unnamed_labels(tmp_path) -> None:
    saved(tmp_path, BERT, CLASSIFICATION)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    del settings["id2label"]
    path.write_text(json.dumps(settings | {"num_labels": 3}))
    head = read_head(find_model(tmp_path))
    assert head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert HEADS[CLASSIFICATION].fits(head)


def test_head_fits_equal_or_unnamed_labels() -> None:
    head = Head(CLASSIFICATION, ("0", "1"))
    assert head.fits(Head(CLASSIFICATION, ("0", "1")))
    assert head.fits(Head(CLASSIFICATION, ("LABEL_0", "LABEL_1")))
    assert not head.fits(Head(CLASSIFICATION, ("1", "0")))
    assert not head.fits(Head(CLASSIFICATION, ("0", "1", "2")))
    assert not head.fits(Head(REGRESSION)) and not head.fits(Head(SPAN))
    assert str(head) == "a classification head with 2 labels (0, 1)"
    assert str(Head(SPAN)) == "a span head"
    tags = Head(TOKEN_CLASSIFICATION, ("O", "B-X"))
    assert str(tags) == "a token classification head with 2 labels (O, B-X)"
    assert not tags.fits(Head(CLASSIFICATION, ("O", "B-X")))
    assert str(Head(CLASSIFICATION, ("two\nlines",))).endswith("with 1 labels (two\\nlines)")


def _run_torch(model, batch: Batch) -> np.ndarray:
    import torch

    inputs = {
        "input_ids": torch.tensor(batch[INPUT_IDS]).long(),
        "attention_mask": torch.tensor(batch[INPUT_MASK]),
    }
    if FAMILIES[model.config.model_type].has_segments:
        inputs["token_type_ids"] = torch.tensor(batch[SEGMENT_IDS]).long()
    with torch.no_grad():
        output = model.eval()(**inputs)
    if "logits" in output:
        return output.logits.numpy()
    return np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=1)


def _assert_equal_logits(ours: heads.TaskModel, theirs, config: EncoderConfig) -> None:
    batch = make_batch(config)
    first, second = np.asarray(ours(batch)), _run_torch(theirs, batch)
    assert first.shape == second.shape
    axes = {SPAN: 1, TOKEN_CLASSIFICATION: 2}
    if ours.task.kind in axes:
        # Outputs at padding are undefined, so they are not compared.
        real = np.expand_dims(batch[INPUT_MASK] == 1, axes[ours.task.kind])
        real = np.broadcast_to(real, first.shape)
        first, second = first[real], second[real]
    print("max abs difference", float(np.abs(first - second).max()))
    np.testing.assert_allclose(first, second, atol=1e-5, rtol=0)


def _peer_class(kind: str):
    transformers = pytest.importorskip("transformers")
    if kind == SPAN:
        return transformers.AutoModelForQuestionAnswering
    if kind == TOKEN_CLASSIFICATION:
        return transformers.AutoModelForTokenClassification
    return transformers.AutoModelForSequenceClassification


@pytest.mark.peers
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_equal_logits_for_saved_heads(
    tmp_path, family: str, kind: str
) -> None:
    model = saved(tmp_path, EXAMPLES[family], kind)
    peer, report = _peer_class(kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    if labels := HEADS[kind].labels:
        assert peer.config.id2label == dict(enumerate(labels))
    _assert_equal_logits(model, peer, EXAMPLES[family])


@pytest.mark.peers
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_saved_by_transformers_give_equal_logits(tmp_path, family: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    settings = EXAMPLES[family].to_hf()
    del settings["architectures"]
    labels = {} if kind == SPAN else {"num_labels": HEADS[kind].num_outputs}
    config = transformers.AutoConfig.for_model(**settings, **labels)
    peer = _peer_class(kind).from_config(config)
    peer.save_pretrained(tmp_path)
    head = read_head(find_model(tmp_path))
    assert HEADS[kind].kind == head.kind and HEADS[kind].num_outputs == head.num_outputs
    model = load(tmp_path, kind, keep_head=True)
    _assert_equal_logits(model, peer, EXAMPLES[family])
