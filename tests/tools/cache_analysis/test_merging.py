"""Merged targets equal a plain average in float64, position by position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.codecs.float16 import Float16Codec
from pipeline.storage.records import TeacherTargets
from tools.cache_analysis.merging import merge_topk

VOCAB_SIZE = 40
SEEDS = st.integers(0, 10**6)
WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4)


def _targets(ids, logits, log_tail_masses, label_log_probs) -> TeacherTargets:
    """Returns targets with tails at temperature 1 only."""
    tails = np.reshape(log_tail_masses, (-1, 1))
    return TeacherTargets(np.array(ids), logits, tails, np.array(label_log_probs), (1.0,))


def _dense(seed: int, count: int, scale: float = 3.0) -> np.ndarray:
    """Returns random probabilities, float64 [teachers, positions, V]."""
    logits = np.random.default_rng(seed).normal(0.0, scale, (count, 5, VOCAB_SIZE))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _topk(p: np.ndarray, k: int) -> TeacherTargets:
    """Returns the top-k of probabilities [positions, V]; all labels are token 3."""
    ids = np.argsort(-p, axis=-1, kind="stable")
    top, rest = np.split(np.take_along_axis(p, ids, -1), [k], axis=-1)
    with np.errstate(divide="ignore"):
        return _targets(ids[:, :k], np.log(top), np.log(rest.sum(-1)), np.log(p[:, 3]))


def _stored(targets: TeacherTargets) -> TeacherTargets:
    """Encodes and decodes targets."""
    codec = Float16Codec(VOCAB_SIZE, targets.ids.shape[-1])
    splits = np.array([0, len(targets.ids)])
    (features,) = codec.encode(targets.ids, targets.logits.astype(np.float32), splits)
    ids, logits = codec.decode(features, len(targets.ids))
    return _targets(
        ids,
        logits,
        targets.log_tail_masses.astype(np.float32),
        targets.label_log_probs.astype(np.float16),
    )


def _probabilities(targets: TeacherTargets) -> tuple[np.ndarray, np.ndarray]:
    return targets.probabilities(1.0)


def _normalized(weights: list[float]) -> list[float]:
    return [weight / math.fsum(weights) for weight in weights]


def _position(ids: list[int], p: list[float], tail: float, label: float) -> TeacherTargets:
    return _targets([ids], np.log([p]), np.log([tail]), np.log([label]))


def test_average_of_two_known_targets() -> None:
    a = _position([5, 2], [0.6, 0.3], 0.1, 0.3)
    b = _position([2, 7], [0.5, 0.4], 0.1, 0.01)
    merged = merge_topk([a, b], [0.5, 0.5], truncation_factor=2)
    assert merged.ids.tolist() == [[2, 5]]
    np.testing.assert_allclose(merged.logits, [[0.0, np.log(0.75)]], rtol=1e-12)
    # The tail has 0.05 of each teacher's tail, and 0.2 of token 7.
    np.testing.assert_allclose(merged.log_tail_masses, [[np.log(0.3)]], rtol=1e-12)
    np.testing.assert_allclose(merged.label_log_probs, [np.log(0.155)], rtol=1e-12)


def test_ties_are_merged_in_the_order_of_ids() -> None:
    targets = _position([8, 3, 6, 1], [0.3, 0.2, 0.2, 0.2], 0.1, 0.2)
    merged = merge_topk([targets, targets], [0.5, 0.5], truncation_factor=3)
    assert merged.ids.tolist() == [[8, 1, 3]]
    np.testing.assert_allclose(merged.log_tail_masses, [[np.log(0.3)]], rtol=1e-12)


def test_targets_with_different_k_and_scale_are_merged() -> None:
    a = _targets([[4]], np.array([[1000.0]], np.float32), np.log([0.5]), np.log([0.5]))
    b = _position([0, 4, 9], [0.5, 0.25, 0.125], 0.125, 0.25)
    merged = merge_topk([a, b], [0.25, 0.75], truncation_factor=3)
    assert merged.ids.tolist() == [[0, 4, 9]]
    p, tail = _probabilities(merged)
    np.testing.assert_allclose(p, [[0.375, 0.3125, 0.09375]], rtol=1e-12)
    np.testing.assert_allclose(tail, [0.21875], rtol=1e-12)


def test_a_tail_far_below_the_rounding_of_1_is_preserved() -> None:
    small_tail = _targets([[1]], np.zeros((1, 1)), [-60.0], [-60.0])
    no_tail = _targets([[1]], np.zeros((1, 1)), [-np.inf], [-80.0])
    merged = merge_topk([small_tail, no_tail], [0.5, 0.5], truncation_factor=1)
    np.testing.assert_allclose(merged.log_tail_masses, [[-60.0 + np.log(0.5)]], rtol=1e-12)
    np.testing.assert_allclose(
        merged.label_log_probs, [-60.0 + np.log(0.5) + np.log1p(np.exp(-20.0))], rtol=1e-12
    )


def test_a_tail_of_all_the_mass_keeps_the_order_of_ids() -> None:
    targets = _targets([[6, 2]], np.array([[0.0, -1.0]]), [1e-8], [-3.0])
    merged = merge_topk([targets, targets], [0.5, 0.5], truncation_factor=2)
    assert merged.ids.tolist() == [[6, 2]]
    np.testing.assert_allclose(merged.logits, [[0.0, -1.0]], rtol=1e-9)
    np.testing.assert_allclose(merged.log_tail_masses, [[0.0]], atol=1e-12)


@given(SEEDS, WEIGHTS, st.data())
def test_merged_targets_equal_sums_over_dictionaries(
    seed: int, raw_weights: list[float], data
) -> None:
    weights = _normalized(raw_weights)
    factors = [data.draw(st.integers(1, VOCAB_SIZE)) for _ in weights]
    k = data.draw(st.integers(1, max(factors)))
    teachers = [
        _topk(p, factor) for p, factor in zip(_dense(seed, len(weights)), factors, strict=True)
    ]
    merged = merge_topk(teachers, weights, truncation_factor=k)
    assert merged.ids.shape == merged.logits.shape == (5, k)
    probabilities, tails = _probabilities(merged)
    for position in range(5):
        sums: dict[int, float] = {}
        for weight, teacher in zip(weights, teachers, strict=True):
            for token, log_p in zip(teacher.ids[position], teacher.logits[position], strict=True):
                sums[int(token)] = sums.get(int(token), 0.0) + weight * math.exp(log_p)
        ordered = sorted(sums, key=lambda token: (-sums[token], token))
        assert merged.ids[position].tolist() == ordered[:k]
        expected = [sums[token] for token in ordered[:k]]
        np.testing.assert_allclose(probabilities[position], expected, rtol=1e-9)
        outside = [sums[token] for token in ordered[k:]]
        outside += [
            weight * math.exp(teacher.log_tail_masses[position, 0])
            for weight, teacher in zip(weights, teachers, strict=True)
        ]
        np.testing.assert_allclose(tails[position], math.fsum(outside), rtol=1e-9)
        # The sum is exact, as the targets are not encoded.
        total = math.fsum(sums[token] for token in ordered[:k]) + tails[position]
        assert total == pytest.approx(1.0, abs=1e-12)


@given(SEEDS, WEIGHTS, st.sampled_from([0.5, 3.0, 8.0]))
def test_merged_targets_of_all_tokens_equal_the_dense_average_within_rounding(
    seed: int, raw_weights: list[float], scale: float
) -> None:
    """Targets are encoded twice, before and after merging.

    Float16 rounds x by at most 2^-11 · |x|. Each encoding changes a log-probability by the
    rounding of the logit and by that of the softmax's sum.
    """
    weights = _normalized(raw_weights)
    dense = _dense(seed, len(weights), scale)
    teachers = [_stored(_topk(p, VOCAB_SIZE)) for p in dense]
    merged = _stored(merge_topk(teachers, weights, truncation_factor=VOCAB_SIZE))
    assert (merged.log_tail_masses == -np.inf).all()
    probabilities, _ = _probabilities(merged)
    exact = np.take_along_axis(np.einsum("t,tpv->pv", weights, dense), merged.ids, axis=-1)
    largest = max(-teacher.logits.min() for teacher in teachers) - merged.logits.min()
    error = np.abs(np.log(probabilities) - np.log(exact)).max()
    assert error <= 2.0 * 2.0**-11 * largest + 1e-5


@given(SEEDS, st.permutations(range(3)), st.integers(1, 20))
def test_the_order_of_teachers_does_not_matter(seed: int, order: list[int], k: int) -> None:
    weights = [0.2, 0.3, 0.5]
    teachers = [_topk(p, k) for p in _dense(seed, 3)]
    merged = merge_topk(teachers, weights, truncation_factor=k)
    reordered = merge_topk(
        [teachers[i] for i in order], [weights[i] for i in order], truncation_factor=k
    )
    np.testing.assert_array_equal(merged.ids, reordered.ids)
    np.testing.assert_allclose(merged.logits, reordered.logits, atol=1e-12)
    np.testing.assert_allclose(merged.log_tail_masses, reordered.log_tail_masses, atol=1e-12)
    np.testing.assert_allclose(merged.label_log_probs, reordered.label_log_probs, atol=1e-12)


@given(SEEDS, st.integers(1, VOCAB_SIZE))
def test_merging_a_teacher_with_itself_or_a_tiny_weight_changes_nothing(seed: int, k: int) -> None:
    first, second = (_topk(p, k) for p in _dense(seed, 2))
    for teachers, weights in (((first, first), (0.3, 0.7)), ((first, second), (1.0, 1e-15))):
        merged = merge_topk(teachers, weights, truncation_factor=k)
        np.testing.assert_array_equal(merged.ids, first.ids)
        np.testing.assert_allclose(merged.logits, first.logits - first.logits[:, :1], atol=1e-7)
        np.testing.assert_allclose(
            np.exp(merged.log_tail_masses), np.exp(first.log_tail_masses), atol=1e-12
        )
        np.testing.assert_allclose(merged.label_log_probs, first.label_log_probs, atol=1e-7)
