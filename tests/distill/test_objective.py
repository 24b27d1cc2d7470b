"""The objective and its gradient on a batch, the metrics and the optimizer."""

import importlib
import pathlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.distill import losses
from pipeline.distill.comparison import Comparison, mean_over_weights
from pipeline.distill.distiller import CalibrationError
from pipeline.distill.losses.base import (
    ATTENTION_NEEDS,
    AVERAGES,
    EMBEDDING,
    HIDDEN,
    LABEL,
    MASKED,
    POSITION_NEEDS,
    TAIL_POLICIES,
    TOPK,
    Loss,
)
from pipeline.distill.losses.weights import parse_losses
from pipeline.distill.objective import Objective
from pipeline.distill.optimization import WarmupLinearDecay, build_optimizer
from tests.distill.running import loss_values, refused

ROOT = pathlib.Path(__file__).parents[2]
# Losses that compare distributions or labels.
ALL = tuple(name for name in losses.LOSSES if losses.load_loss(name).needs in (TOPK, LABEL))


def _targets(seed: int = 0, *, padded: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = (2, 3 + padded)
    logits = -np.sort(random.exponential(2.0, (*shape, 5)), axis=-1).astype("float32")
    weights = np.ones(shape, "float32")
    tails = np.log(random.uniform(0.05, 0.5, (*shape, 2))).astype("float32")
    targets = {
        records.MASKED_LM_IDS: random.integers(0, 30, shape).astype("int32"),
        records.TOPK_IDS: np.argsort(random.random((*shape, 30)), -1)[..., :5].astype("int32"),
        records.TOPK_LOGITS: logits - logits[..., :1],
        records.LOG_TAIL_MASSES: tails,
        records.MASKED_LM_WEIGHTS: weights,
    }
    if padded:
        # The reader pads with zeros and a tail without mass.
        for value in targets.values():
            value[:, 3:] = 0
        targets[records.LOG_TAIL_MASSES][:, 3:] = -np.inf
    return targets


def _objective(weights: dict[str, float], **changes) -> Objective:
    cached = {"truncation_factor": 5, "cached_temperatures": (1.0, 2.0)}
    return Objective(weights, Comparison(**cached, **changes))


def _mean(objective: Objective, logits: np.ndarray, targets) -> dict[str, float]:
    values = loss_values(objective.comparison, logits, targets, ALL)
    weights = targets[records.MASKED_LM_WEIGHTS]
    return {name: float(mean_over_weights(value, weights)) for name, value in values.items()}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", [None, *TAIL_POLICIES])
def test_padding_contributes_nothing(tail: str | None, temperature: float) -> None:
    objective = _objective(dict.fromkeys(ALL, 1.0), tail=tail, temperature=temperature)
    targets = _targets()
    logits = np.random.default_rng(1).normal(0.0, 2.0, (2, 3, 30)).astype("float32")
    padded = {
        name: np.concatenate([value, _targets(padded=2)[name][:, 3:]], axis=1)
        for name, value in targets.items()
    }
    padded[records.MASKED_LM_WEIGHTS][:, 3:] = 0
    wide = tf.Variable(np.concatenate([logits, np.full((2, 2, 30), 50.0, "float32")], axis=1))
    with tf.GradientTape() as tape:
        values = loss_values(objective.comparison, wide.value(), padded, ALL)
        weights = padded[records.MASKED_LM_WEIGHTS]
        means = {name: mean_over_weights(value, weights) for name, value in values.items()}
        total = objective.total(means)
    assert set(means) == set(ALL)
    for name, mean in _mean(objective, logits, targets).items():
        np.testing.assert_allclose(float(means[name]), mean, rtol=1e-5)
    gradient = tape.gradient(total, wide).numpy()
    assert np.isfinite(gradient).all() and gradient[:, :3].any()
    assert not gradient[:, 3:].any()


@pytest.mark.parametrize("tail", [None, *TAIL_POLICIES])
def test_positions_may_have_fewer_tokens(tail: str | None) -> None:
    """The reader pads ids with -1; their logits are the lowest, without mass."""
    objective = _objective(dict.fromkeys(ALL, 1.0), tail=tail)
    targets = _targets()
    topk = (records.TOPK_IDS, records.TOPK_LOGITS)
    fewer = targets | {name: targets[name][..., :3] for name in topk}
    padded = {name: values.copy() for name, values in targets.items()}
    padded[records.TOPK_IDS][..., 3:] = -1
    padded[records.TOPK_LOGITS][..., 3:] = -np.inf
    logits = np.random.default_rng(1).normal(0.0, 2.0, (2, 3, 30)).astype("float32")
    expected = _mean(objective, logits, fewer)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        values = loss_values(objective.comparison, variable.value(), padded, ALL)
        weights = padded[records.MASKED_LM_WEIGHTS]
        means = {name: mean_over_weights(value, weights) for name, value in values.items()}
        total = objective.total(means)
    assert {name: float(mean) for name, mean in means.items()} == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(tape.gradient(total, variable).numpy()).all()


def test_total_is_the_weighted_sum() -> None:
    objective = _objective({"masked_lm": 2.0, "probability_cosine": 0.5})
    means = _mean(objective, np.zeros((2, 3, 30), "float32"), _targets())
    total = 2.0 * means["masked_lm"] + 0.5 * means["probability_cosine"]
    assert float(objective.total(means)) == pytest.approx(total)
    assert means["masked_lm"] == pytest.approx(np.log(30.0), rel=1e-6)


def test_temperature_changes_only_tempered_losses() -> None:
    logits = np.random.default_rng(1).normal(0.0, 2.0, (2, 3, 30)).astype("float32")
    cold = _mean(_objective({"masked_lm": 1.0}), logits, _targets())
    warm = _mean(_objective({"masked_lm": 1.0}, temperature=2.0), logits, _targets())
    changed = {name for name in ALL if not np.isclose(cold[name], warm[name])}
    assert changed == {name for name in ALL if losses.load_loss(name).uses_temperature}
    # The published losses, as their papers define them.
    assert changed >= {"soft_cross_entropy", "kl_divergence"}
    assert not changed & {"probability_cosine", "masked_lm"}


def test_label_loss_needs_no_teacher() -> None:
    objective = Objective({"masked_lm": 1.0})
    logits = np.zeros((2, 3, 30), "float32")
    values = loss_values(objective.comparison, logits, _targets(), {"masked_lm"})
    np.testing.assert_allclose(values["masked_lm"], np.log(30.0), rtol=1e-6)
    assert objective.comparison.reported_losses(objective.weights) == ("masked_lm",)
    with refused("losses", "kl_divergence needs the teacher's top-k"):
        Objective({"kl_divergence": 1.0})


def test_temperature_without_a_cached_tail_requires_renormalize() -> None:
    with pytest.raises(InputError) as caught:
        _objective({"kl_divergence": 1.0}, temperature=3.0)
    assert (caught.value.subject, caught.value.received) == ("temperature", "3")
    # Sorted, with the temperatures that the cache holds already.
    assert "create_teacher_output_data `temperatures`=1,2,3" in caught.value.hint
    with pytest.raises(InputError) as caught:
        _objective({"kl_divergence": 1.0}, temperature=0.5)
    # The stored temperatures begin at 1.
    assert "`temperatures`" not in caught.value.hint
    objective = _objective({"kl_divergence": 1.0}, temperature=3.0, tail="renormalize")
    assert _mean(objective, np.zeros((2, 3, 30), "float32"), _targets())["kl_divergence"] > 0


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("cross_entropy=1", "'cross_entropy'"),
        ("masked_lm=x", "'x'"),
        ("masked_lm=0", "0"),
        ("masked_lm=nan", "nan"),
        ("masked_lm,masked_lm=2", "masked_lm twice"),
        (" ,", "none"),
    ],
)
def test_invalid_losses_are_refused(text: str, received: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_losses(text)
    assert caught.value.received == received


@pytest.mark.parametrize(
    ("name", "similar"), [("kl_divergance", "kl_divergence"), ("mask_lm", "masked_lm"), ("x", None)]
)
def test_misspelled_loss_error_suggests_a_similar_one(name: str, similar: str | None) -> None:
    with pytest.raises(InputError) as caught:
        parse_losses(f"{name}=1")
    assert (caught.value.hint is None) == (similar is None)
    assert similar is None or similar in caught.value.hint


def test_losses_are_parsed_with_default_weights() -> None:
    parsed = parse_losses("kl_divergence=5, masked_lm=2,probability_cosine")
    assert parsed == {"kl_divergence": 5.0, "masked_lm": 2.0, "probability_cosine": 1.0}


@given(st.integers(0, 10**6))
def test_calibration_error_equals_a_plain_computation(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random((4, 6)).astype("float32")
    correct = (random.random((4, 6)) < 0.5).astype("float32")
    weight = (random.random((4, 6)) < 0.8).astype("float32")
    metric = CalibrationError()
    metric.update_state(confidence[:2], correct[:2], weight[:2])
    metric.update_state(confidence[2:], correct[2:], weight[2:])
    bins = np.minimum((confidence * np.float32(15)).astype(int), 14)
    expected = sum(
        abs((weight * (correct - confidence))[bins == number].sum()) for number in range(15)
    ) / max(1.0, weight.sum())
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)


def test_learning_rate_rises_and_falls() -> None:
    schedule = WarmupLinearDecay(1.0, warmup_steps=4, num_train_steps=8)
    rates = [float(schedule(step)) for step in range(9)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
    stretched = WarmupLinearDecay(1.0, warmup_steps=4, num_train_steps=8, steps_per_update=3)
    np.testing.assert_allclose(
        [float(stretched(step)) for step in range(24)], np.repeat(rates[:8], 3)
    )


def test_weight_decay_excludes_vectors() -> None:
    import keras

    matrix, vector = (keras.Variable(np.ones(shape, "float32")) for shape in ((2, 2), (2,)))
    schedule = WarmupLinearDecay(0.1, warmup_steps=0, num_train_steps=10**6)
    optimizer = build_optimizer([matrix, vector], schedule, weight_decay=0.5, clip_norm=1.0)
    optimizer.apply([tf.zeros((2, 2)), tf.zeros(2)], [matrix, vector])
    np.testing.assert_allclose(matrix.numpy(), 1.0 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(vector.numpy(), 1.0)


def _loss_classes(parent: type = Loss) -> set[type]:
    """Returns all classes of losses in the modules of the package."""
    for module in pkgutil.iter_modules(losses.__path__):
        importlib.import_module(f"{losses.__name__}.{module.name}")
    classes = set(parent.__subclasses__())
    classes |= {child for subclass in classes for child in _loss_classes(subclass)}
    return {loss for loss in classes if loss.__module__.startswith(losses.__name__)}


def test_every_loss_is_in_the_table_by_its_name() -> None:
    loaded = {name: losses.load_loss(name) for name in losses.LOSSES}
    assert set(loaded.values()) == {loss for loss in _loss_classes() if hasattr(loss, "name")}
    assert all(loss.name == name for name, loss in loaded.items())


def test_every_loss_declares_valid_needs_and_averages() -> None:
    for loss in map(losses.load_loss, losses.LOSSES):
        assert loss.needs in (*POSITION_NEEDS, HIDDEN, EMBEDDING, *ATTENTION_NEEDS), loss
        assert loss.averaged_over in AVERAGES, loss
        assert loss.default_tail in (None, *TAIL_POLICIES), loss
        of_layers = loss.needs not in (*POSITION_NEEDS, EMBEDDING)
        assert (loss.default_layer_groups is not None) == of_layers, loss
        if loss.from_cache is not None:
            assert losses.load_loss(loss.from_cache).averaged_over == MASKED
    names = ("soft_cross_entropy", "kl_divergence")
    # The first is the published recipe's; under the second, p and q have equal sums.
    assert [losses.load_loss(name)().tail for name in names] == ["drop", "bucket"]


def test_names_of_losses_are_read_without_keras() -> None:
    code = "import sys, pipeline.distill.settings; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
