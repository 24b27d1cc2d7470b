"""The mass of a top-k is exact at cached temperatures, and an upper bound at others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import manifest as manifests
from pipeline.storage import topk_mass
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.records import TeacherTargets
from pipeline.storage.topk_mass import TopKFit


def _targets(logits: np.ndarray, k: int, temperatures: tuple[float, ...]) -> TeacherTargets:
    """Returns the targets of a position: the top-k of its logits."""
    ids = np.argsort(-logits, kind="stable")
    ordered = logits[ids] - logits.max()
    tails = []
    for temperature in temperatures:
        weights = np.exp(ordered / temperature)
        with np.errstate(divide="ignore"):
            tails.append(np.log(weights[k:].sum() / weights.sum()))
    log_tails = np.array([tails], np.float32)
    return TeacherTargets(ids[None, :k], ordered[None, :k], log_tails, None, temperatures)


def test_masses_of_a_known_distribution() -> None:
    """The top 2 of .5, .25, .125, .125 hold .75; at T = 2, roots replace probabilities."""
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    targets = _targets(logits, 2, (1.0, 2.0))
    assert topk_mass.masses(targets, 1.0) == pytest.approx([0.75])
    roots = np.sqrt([0.5, 0.25, 0.125, 0.125])
    assert topk_mass.masses(targets, 2.0) == pytest.approx([roots[:2].sum() / roots.sum()])
    # Without a cached tail at T = 2, the tail may be a single token as probable as the second.
    uncached = _targets(logits, 2, (1.0,))
    bound = roots[:2].sum() / roots[[0, 1, 1]].sum()
    assert topk_mass.masses(uncached, 2.0) == pytest.approx([bound])


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.sampled_from([1.5, 4.0, 8.0, 100.0]),
    st.sampled_from([0.3, 2.0, 9.0]),
)
def test_mass_at_an_uncached_temperature_is_an_upper_bound(seed, k, temperature, scale) -> None:
    logits = np.random.default_rng(seed).normal(0.0, scale, 40)
    (bound,) = topk_mass.masses(_targets(logits, k, (1.0,)), temperature)
    (exact,) = topk_mass.masses(_targets(logits, k, (1.0, temperature)), temperature)
    (cached,) = topk_mass.masses(_targets(logits, k, (1.0,)), 1.0)
    assert exact - 1e-5 <= bound <= cached + 1e-5


def test_masses_of_rows_without_a_tail_or_with_fewer_ids() -> None:
    ids = np.array([[1, 0, NO_ID], [2, NO_ID, NO_ID]])
    logits = np.array([[0.0, -1.0, NO_ID_LOGIT], [0.0, NO_ID_LOGIT, NO_ID_LOGIT]])
    tails = np.array([[-np.inf], [np.log(0.75)]], np.float32)
    targets = TeacherTargets(ids, logits, tails, None, (1.0,))
    assert topk_mass.masses(targets, 1.0) == pytest.approx([1.0, 0.25])
    # The second row's tail counts as three tokens as probable as its only id.
    assert topk_mass.masses(targets, 8.0) == pytest.approx([1.0, 0.25])


def test_mass_is_measured_in_a_topk_cache_only(cache_dir, states_cache_dir) -> None:
    manifest = manifests.load(cache_dir)
    fits = topk_mass.measure(cache_dir, manifest, (1.0, 2.0, 8.0))
    assert list(fits) == [1.0, 2.0, 8.0]
    assert 1.0 > fits[1.0].mass > fits[2.0].mass > fits[8.0].mass > 0.0
    for fit in fits.values():
        # By Jensen's inequality, the mean of −log is at least −log of the mean.
        assert fit.divergence >= -np.log(fit.mass) - 1e-9
    states = manifests.load(states_cache_dir)
    assert topk_mass.measure(states_cache_dir, states, (1.0, 8.0)) == {}
    assert topk_mass.measure(cache_dir, manifest, ()) == {}


def test_warning_about_a_topk_with_less_than_half_of_the_mass() -> None:
    fits = {1.0: TopKFit(0.5, 0.7), 4.0: TopKFit(0.028, 3.6)}
    (line,) = topk_mass.warnings(fits, 128)
    assert "temperature 4 the top 128 hold 2.8%" in line
    assert "--logit_encoding=states" in line
