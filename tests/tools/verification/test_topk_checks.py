"""Valid teacher targets of a masked position pass the checks, invalid ones are reported."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.manifest import SAMPLED, TeacherInfo
from pipeline.storage.records import TeacherTargets
from tools.verification.topk_checks import TopKRows, topk_problems

TEMPERATURES = (1.0, 2.0)


def _info(**changes) -> TeacherInfo:
    sha256 = {"sha256": "0" * 64}
    settings = {"truncation_factor": 3, "logit_encoding": "float16", "temperatures": TEMPERATURES}
    return TeacherInfo(**{**settings, "teacher": sha256, "parent": sha256, **changes})


def _true_rows(logits: np.ndarray, labels: np.ndarray, k: int, mass: float | None = None):
    """Returns the targets of a cache of these logits, computed in float64 by definition."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    taken = np.take_along_axis(probabilities, order, -1)
    is_stored = np.ones(order.shape, bool)
    if mass is not None:
        is_stored = np.cumsum(taken, -1) - taken < mass
        is_stored[:, 0] = True
    ids = np.where(is_stored, order, NO_ID)
    values = np.where(is_stored, np.take_along_axis(logits, order, -1), NO_ID_LOGIT)
    tails = []
    for temperature in TEMPERATURES:
        p = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
        p /= p.sum(-1, keepdims=True)
        outside = p.copy()
        for row in range(len(ids)):
            outside[row, ids[row][is_stored[row]]] = 0.0
        with np.errstate(divide="ignore"):
            tails.append(np.log(outside.sum(-1)))
    with np.errstate(divide="ignore"):
        label_log_probs = np.log(probabilities[np.arange(len(labels)), labels])
    return ids, values - values[:, :1], np.stack(tails, -1), label_log_probs


@st.composite
def _distributions(draw):
    vocab_size = draw(st.integers(4, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 200.0]))
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(6, vocab_size)) * scale).astype(np.float32).astype(np.float64)
    labels = rng.integers(vocab_size, size=6)
    return logits, labels, draw(st.integers(1, vocab_size)), draw(st.sampled_from([None, 0.7, 1.0]))


@pytest.mark.parametrize("encoding", CODECS)
@given(made=_distributions())
def test_decoded_targets_of_any_distribution_pass(encoding: str, made) -> None:
    logits, labels, k, mass = made
    vocab_size = logits.shape[1]
    ids, values, tails, label_log_probs = _true_rows(logits, labels, k, mass)
    codec = CODECS[encoding](vocab_size, k, mass is not None, np.arange(vocab_size))
    packed = codec.encode(ids, values.astype(np.float32), np.array([0, 2, 6]))
    decoded = codec.decode_records(packed, [2, 4])
    label_log_probs = label_log_probs.astype(np.float16).astype("f4")
    targets = TeacherTargets(*decoded, tails.astype(np.float32), label_log_probs, TEMPERATURES)
    rows = TopKRows.of(targets, codec, labels)
    info = _info(truncation_factor=k, truncation_mass=mass, logit_encoding=encoding)
    problems = [problem for problem, bad in topk_problems(rows, info, vocab_size) if bad.any()]
    assert not problems


@pytest.mark.parametrize("encoding", CODECS)
@given(made=_distributions())
def test_codec_errors_bound_the_loss_of_encoding(encoding: str, made) -> None:
    logits, labels, k, mass = made
    ids, values, _, _ = _true_rows(logits, labels, k, mass)
    codec = CODECS[encoding](logits.shape[1], k, mass is not None, np.arange(logits.shape[1]))
    features = codec.encode(ids, values.astype(np.float32), np.array([0, 6]))
    decoded_ids, decoded = codec.decode(features[0], 6)
    errors = codec.errors(decoded)
    # Codecs may change the order of equal logits.
    true = [dict(zip(row, value, strict=True)) for row, value in zip(ids, values, strict=True)]
    for row in range(6):
        for index, logit, error in zip(decoded_ids[row], decoded[row], errors[row], strict=True):
            if index != NO_ID:
                assert abs(logit - true[row][index]) <= error
    assert np.isfinite(errors[:, 0]).all()


@pytest.mark.parametrize("encoding", CODECS)
@pytest.mark.parametrize("variable", [False, True])
def test_decoding_records_together_equals_decoding_each(encoding: str, variable: bool) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(9, 600)) * 4.0
    labels = np.zeros(9, int)
    ids, values, _, _ = _true_rows(logits, labels, 20, 0.8 if variable else None)
    codec = CODECS[encoding](600, 20, variable, rng.integers(1000, size=600))
    counts = [2, 0, 4, 3]
    packed = codec.encode(ids, values.astype(np.float32), np.cumsum([0, *counts]))
    together = codec.decode_records(packed, counts)
    alone = [codec.decode(features, count) for features, count in zip(packed, counts, strict=True)]
    for joined, of_records in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(joined, np.concatenate(of_records))


def _rows(**changes) -> TopKRows:
    """Returns three positions of 8 tokens with p = .5, .25, .125, 5 × .025; labels 4, 1, 6."""
    log_p = np.log([0.5, 0.25, 0.125])
    doubled = np.sqrt([0.5, 0.25, 0.125, *[0.025] * 5])
    tails = np.log([0.125, doubled[3:].sum() / doubled.sum()])
    rows = TopKRows(
        ids=np.tile(np.array([4, 1, 2], np.int32), (3, 1)),
        logits=np.tile((log_p - log_p[0]).astype(np.float32), (3, 1)),
        errors=np.zeros((3, 3), np.float32),
        log_tail_masses=np.tile(tails.astype(np.float32), (3, 1)),
        label_log_probs=np.log([0.5, 0.25, 0.025]).astype(np.float32),
        temperatures=TEMPERATURES,
        labels=np.array([4, 1, 6]),
    )
    for name, (index, value) in changes.items():
        getattr(rows, name)[index] = value
    return rows


def _problems(rows: TopKRows, *, vocab_size: int = 8, **changes) -> dict[str, list[int]]:
    problems = topk_problems(rows, _info(**changes), vocab_size)
    return {problem: np.flatnonzero(bad).tolist() for problem, bad in problems if bad.any()}


TAIL, LABEL = records.LOG_TAIL_MASSES, records.LABEL_LOG_PROBS


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ids": ((1, 2), 4)}, "topk_ids: expected no id twice at a position"),
        ({"logits": ((1, 2), np.nan)}, "topk_logits: expected finite numbers"),
        ({"logits": ((1, 0), -0.1)}, "topk_logits: expected 0 at the first id"),
        ({"logits": ((1, 2), -0.6)}, "topk_logits: expected descending numbers"),
        ({TAIL: ((1, 0), np.nan)}, f"{TAIL}: expected logarithms of masses, at most 0"),
        ({TAIL: ((1, 0), 0.01)}, f"{TAIL}: expected logarithms of masses, at most 0"),
        (
            {TAIL: ((1, 1), np.log(0.1))},
            f"{TAIL}: expected more mass in the tail at a higher",
        ),
        ({LABEL: (1, np.nan)}, f"{LABEL}: expected logarithms of probabilities, at most 0"),
        ({LABEL: (1, 0.1)}, f"{LABEL}: expected logarithms of probabilities, at most 0"),
        ({LABEL: (1, np.log(0.26))}, f"{LABEL}: expected the probability of the label in the top-"),
        (
            {LABEL: (2, np.log(0.2))},
            f"{LABEL}: expected at most the tail's mass where the label",
        ),
    ],
)
def test_invalid_targets_are_reported_at_their_position(changes, problem: str) -> None:
    assert _problems(_rows()) == {}
    ((_, (index, _)),) = changes.items()
    row = index[0] if isinstance(index, tuple) else index
    problems = _problems(_rows(**changes))
    assert any(text.startswith(problem) for text in problems)
    assert all(rows == [row] for rows in problems.values())


def test_a_tail_with_tokens_more_probable_than_the_top_k_is_reported() -> None:
    """The five tokens outside have at most 5 · 0.125 = 0.625, the top-k has 0.875."""
    max_share = 0.625 / (0.625 + 0.875)
    problem = "expected tokens in the tail that are less probable than those in the top-k, at"
    for share, expected in ((max_share - 0.01, []), (max_share + 0.01, [1])):
        rows = _rows(**{TAIL: ((1, 0), np.log(share))})
        rows.log_tail_masses[1, 1] = np.log(0.46)
        problems = _problems(rows, temperatures=(1.0, 2.0))
        assert problems.get(f"{TAIL}: {problem} temperature 1", []) == expected
    rows = _rows(**{TAIL: ((2, 1), np.log(0.9))})
    assert _problems(rows)[f"{TAIL}: {problem} temperature 2"] == [2]


def test_a_tail_beside_a_topk_of_all_tokens_is_reported() -> None:
    rows = _rows()
    problem = f"{TAIL}: expected −inf where every token is in the top-k"
    assert _problems(rows, vocab_size=3)[problem] == [0, 1, 2]
    rows.log_tail_masses[:] = -np.inf
    assert problem not in _problems(rows, vocab_size=3)
    # A confident teacher's tail may be 0 in float32.
    assert problem not in _problems(rows, vocab_size=8)


def test_random_draws_must_have_no_tail_and_any_label_probability() -> None:
    changes = {"truncation": SAMPLED, "temperatures": (1.0,)}
    rows = dataclasses.replace(_rows(), log_tail_masses=np.full((3, 1), -np.inf, np.float32))
    rows.label_log_probs[:] = -30.0
    assert _problems(rows, **changes) == {}
    rows.log_tail_masses[1] = -3.0
    assert _problems(rows, **changes) == {f"{TAIL}: expected −inf, as draws have no tail": [1]}


def test_merged_targets_may_have_any_label_probability() -> None:
    rows = dataclasses.replace(_rows(), log_tail_masses=_rows().log_tail_masses[:, :1])
    rows.label_log_probs[:] = -30.0
    merged = {"teacher": {"merged": []}, "temperatures": (1.0,)}
    assert _problems(rows, **merged) == {}
    assert _problems(rows, temperatures=(1.0,)) != {}


def test_ids_below_the_truncation_mass_are_reported() -> None:
    rows = _rows()
    rows.ids[1, 2], rows.logits[1, 2] = NO_ID, NO_ID_LOGIT
    rows.log_tail_masses[1] = np.log([0.25, 0.45])
    problem = "topk_counts: expected a mass of 0.8 or more where there are fewer than 3 ids"
    assert _problems(rows, truncation_mass=0.8) == {problem: [1]}
    assert _problems(rows, truncation_mass=0.75) == {}
