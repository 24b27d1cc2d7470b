"""Training of only the masked-LM head, and new heads for encoders without one."""

import dataclasses
import importlib.util
import json
import shutil

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.distill import training
from pipeline.distill.preparation import prepare
from pipeline.distill.settings import StudentConfig
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.storage import manifest as manifests
from pipeline.storage.records import read_examples
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import run_python, save_tiny_bert
from tests.distill.running import (
    assert_same_weights,
    distilled,
    expect_same_after_interrupt,
    read_weights,
    refused,
)

HEAD = "cls.predictions."


@pytest.fixture(scope="module")
def bare_dir(tmp_path_factory, teacher_dir):
    """The teacher's encoder as `BertModel` saves it, without a prefix and without a head."""
    folder = tmp_path_factory.mktemp("bare") / "encoder"
    shutil.copytree(teacher_dir, folder)
    weights = {
        name.removeprefix("bert."): value
        for name, value in load_file(folder / "model.safetensors").items()
        if not name.startswith(HEAD)
    }
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def half_dir(tmp_path_factory, teacher_dir):
    """The teacher without a part of its head."""
    folder = tmp_path_factory.mktemp("half") / "model"
    shutil.copytree(teacher_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "transform" not in name}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def own_settings(examples_dir, teacher_dir) -> dict:
    """A student that starts as the whole teacher, trained on labels only."""
    return {
        "student": StudentConfig(student=teacher_dir),
        "losses": {"masked_lm": 1.0},
        "input_dir": examples_dir,
    }


# A frozen encoder.


def test_frozen_encoder_leaves_only_the_head_to_train(config, teacher_dir) -> None:
    distilled(config, freeze=("encoder",))
    trained, before = read_weights(config.output_dir), read_weights(teacher_dir)
    assert trained.keys() == before.keys()
    for name, value in before.items():
        assert np.array_equal(trained[name], value) != name.startswith(HEAD), name


def test_optimizer_has_slots_only_for_the_head(config) -> None:
    run = prepare(dataclasses.replace(config, freeze=("encoder",)))
    distiller = training.build_distiller(run)
    head = [tuple(variable.shape) for variable in distiller.student.head.trainable_variables]
    assert [tuple(variable.shape) for variable in distiller.trainable_variables] == head
    slots = [tuple(slot.shape) for slot in distiller.optimizer.variables if len(slot.shape)]
    assert sorted(slots) == sorted(2 * head)


def test_a_frozen_encoder_has_no_dropout(teacher_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    ids = np.arange(8, dtype="int32")[np.newaxis] + 5
    batch = {
        records.INPUT_IDS: ids,
        records.INPUT_MASK: np.ones_like(ids),
        records.SEGMENT_IDS: np.zeros_like(ids),
    }
    still = np.asarray(model.activations(batch, training=False)[LOGITS])
    assert not np.allclose(model.activations(batch, training=True)[LOGITS], still)
    model.encoder.trainable = False
    np.testing.assert_array_equal(model.activations(batch, training=True)[LOGITS], still)


# Prints the numbers of matrix products of a step's loss, and of the loss with its gradient.
ON_JAX = """
import sys
import jax, keras
import numpy as np
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import find_model, load_masked_lm

model = load_masked_lm(find_model(Location.parse(sys.argv[1])))
model.encoder.trainable = False
ids = np.ones((2, 8), "int32")
batch = dict(input_ids=ids, input_mask=ids, segment_ids=0 * ids, masked_lm_positions=ids[:, :3])
fixed = model.non_trainable_variables

def loss(trainable):
    mapping = [*zip(model.trainable_variables, trainable), *((v, v.value) for v in fixed)]
    with keras.StatelessScope(state_mapping=mapping):
        return (model.activations(batch, training=True)["logits"] ** 2).mean()

values = [variable.value for variable in model.trainable_variables]
for function in (loss, jax.grad(loss)):
    print(str(jax.make_jaxpr(function)(values)).count("dot_general"))
"""


def _products_on_tensorflow(model: MaskedLM) -> list[int]:
    import tensorflow as tf

    ids = tf.ones((2, 8), "int32")
    batch = {
        records.INPUT_IDS: ids,
        records.INPUT_MASK: ids,
        records.SEGMENT_IDS: 0 * ids,
        records.MASKED_LM_POSITIONS: ids[:, :3],
    }

    def loss():
        return tf.reduce_mean(model.activations(batch, training=True)[LOGITS] ** 2)

    def gradient():
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, [variable.value for variable in model.trainable_variables])

    graphs = [tf.function(traced).get_concrete_function().graph for traced in (loss, gradient)]
    return [sum("MatMul" in op.type for op in graph.get_operations()) for graph in graphs]


@pytest.mark.long
def test_gradient_does_not_reach_a_frozen_encoder(teacher_dir) -> None:
    """The gradient takes two more products: for the dense layer's kernel and for its output."""
    if keras.config.backend() == "tensorflow":
        model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
        model.encoder.trainable = False
        forward, both = _products_on_tensorflow(model)
        assert (forward > 10, both - forward) == (True, 2)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_gradient_does_not_reach_a_frozen_encoder_on_jax(teacher_dir) -> None:
    output = run_python("-c", ON_JAX, str(teacher_dir), KERAS_BACKEND="jax").stdout
    forward, both = map(int, output.split())
    assert (forward > 10, both - forward) == (True, 2)


@pytest.mark.long
def test_an_interrupted_training_of_a_head_resumes(config, monkeypatch) -> None:
    frozen = dataclasses.replace(config, freeze=("encoder",))
    expect_same_after_interrupt(monkeypatch, frozen, update=8, step=5)


def test_losses_on_frozen_weights_are_refused(config, teacher_dir) -> None:
    with refused("losses", "hidden_cosine"):
        distilled(
            config,
            teacher=str(teacher_dir),
            losses={"masked_lm": 1.0, "hidden_cosine": 1.0},
            layer_groups="1-2:2",
            freeze=("encoder",),
        )
    assert not config.output_dir.exists()


# A new head.


def _label_shares(examples_dir, vocab_size: int) -> np.ndarray:
    manifest, counts = manifests.load(examples_dir), np.ones(vocab_size)
    for shard in manifest.splits["train"]:
        for example in read_examples(examples_dir / shard.file, manifest):
            np.add.at(counts, example.masked_lm_ids, 1)
    return counts / counts.sum()


@pytest.mark.long
def test_encoder_without_a_head_starts_with_a_new_head(
    config, bare_dir, teacher_dir, capsys
) -> None:
    student = StudentConfig(student=bare_dir)
    distilled(config, student=student, num_train_steps=1, learning_rate=0.0, weight_decay=0.0)
    lines = capsys.readouterr().err.splitlines()
    assert sum("no masked-LM head" in line for line in lines) == 1
    initial, before = read_weights(config.output_dir), read_weights(teacher_dir)
    size = len(before[f"{HEAD}bias"])
    expected = {
        "transform.dense.weight": np.eye(32),
        "transform.dense.bias": np.zeros(32),
        "transform.LayerNorm.weight": np.ones(32),
        "transform.LayerNorm.bias": np.zeros(32),
        "bias": np.log(_label_shares(config.input_dir, size)),
    }
    for name, value in before.items():
        exact = expected[name.removeprefix(HEAD)] if name.startswith(HEAD) else value
        np.testing.assert_allclose(initial[name], exact, rtol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cache", "windows"])
def test_narrower_student_of_an_encoder_gets_a_new_head(
    config, bare_dir, cache_dir, windows_dir, kind
) -> None:
    folder = cache_dir if kind == "cache" else windows_dir
    student = StudentConfig(
        init_from=bare_dir, student_layers=2, student_hidden_size=16, student_attention_heads=2
    )
    settings = {"num_train_steps": 1, "learning_rate": 0.0, "input_dir": folder}
    distilled(config, student=student, **settings)
    initial = read_weights(config.output_dir)
    np.testing.assert_array_equal(initial[f"{HEAD}transform.dense.weight"], np.eye(16))
    shares = np.exp(initial[f"{HEAD}bias"])
    assert shares.sum() == pytest.approx(1.0, rel=1e-4) and shares.max() > 10 * shares.min()


@pytest.mark.long
def test_identity_of_a_new_head_is_cut_to_the_embedding_width(config, tmp_path, vocab_file) -> None:
    sizes = {"embedding_size": 16, "model_type": "albert"}
    folder = save_tiny_bert(tmp_path / "albert", vocab_file, seed=2, **sizes)
    weights = load_file(folder / "model.safetensors")
    encoder = {name: weights[name] for name in weights if not name.startswith("predictions.")}
    save_file(encoder, folder / "model.safetensors")
    student = StudentConfig(student=folder)
    distilled(config, student=student, num_train_steps=1, learning_rate=0.0)
    initial = read_weights(config.output_dir)
    np.testing.assert_array_equal(initial["predictions.dense.weight"], np.eye(16, 32))


@pytest.mark.long
def test_training_with_a_new_head_is_reproducible(config, bare_dir) -> None:
    student = StudentConfig(student=bare_dir)
    other = dataclasses.replace(config, output_dir=f"{config.output_dir}-again")
    for each in (config, other):
        distilled(each, student=student, num_train_steps=2)
    assert_same_weights(config.output_dir, other.output_dir)


@pytest.mark.long
def test_model_with_a_trained_new_head_is_a_teacher(config, bare_dir, tmp_path) -> None:
    settings = {"num_train_steps": 3, "freeze": ("encoder",)}
    distilled(config, student=StudentConfig(student=bare_dir), **settings)
    manifest = create_teacher_cache(
        TeacherCacheConfig(tmp_path / "cache", config.input_dir, teacher=config.output_dir)
    )
    assert json.loads((config.output_dir / "config.json").read_text())["architectures"]
    assert manifest.label_sums().num_labels > 1000


@pytest.mark.parametrize("name", ["bare", "half"])
def test_teacher_without_a_complete_head_is_refused(
    config, request, tmp_path, examples_dir, name: str
) -> None:
    folder = request.getfixturevalue(f"{name}_dir")
    with refused("teacher", "cls.predictions.transform.dense.weight"):
        distilled(config, teacher=str(folder), losses={"soft_cross_entropy": 1.0})
    with pytest.raises(InputError) as caught:
        create_teacher_cache(
            TeacherCacheConfig(tmp_path / "cache", examples_dir, teacher=str(folder))
        )
    assert caught.value.setting == "teacher"
    assert ("freeze" in caught.value.hint) == (name == "bare")


@pytest.mark.parametrize("setting", ["student", "init_from"])
def test_student_with_an_incomplete_head_is_refused(config, half_dir, setting: str) -> None:
    layers = {"student_layers": 1} if setting == "init_from" else {}
    with refused(setting, "cls.predictions.transform.dense.weight"):
        distilled(config, student=StudentConfig(**{setting: half_dir}, **layers))
    assert not config.output_dir.exists()
