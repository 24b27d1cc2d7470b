"""Comparison of caches with their own and with other teachers."""

import dataclasses

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.compact import CompactCodec
from tests.conftest import make_cache, save_tiny_bert
from tests.tools.conftest import Features, read_rows, rewrite_cache
from tools.cache_analysis import cache_report

ALL = 10**6


@pytest.fixture(scope="module")
def model(teacher_dir):
    return model_directory.load_masked_lm(model_directory.find_model(teacher_dir))


def _open(folder) -> cache_input.CacheInput:
    return cache_input.open_cache(folder, None)


def _measure(model, folder, sample: int = ALL) -> cache_report.CacheReport:
    return cache_report.measure_cache(model, _open(folder), sample=sample, batch_size=8)


@pytest.mark.parametrize("mass", [None, 0.9])
@pytest.mark.parametrize("encoding", CODECS)
def test_a_cache_equals_its_teacher_within_the_codecs_error(
    model, examples_dir, teacher_dir, tmp_path, encoding: str, mass: float | None
) -> None:
    made = make_cache(
        tmp_path / "cache", examples_dir, teacher_dir, logit_encoding=encoding, truncation_mass=mass
    )
    cache = _open(made)
    codec = cache_input.open_codec(made, cache.manifest)
    rows = read_rows(cache.directory)
    logits = [
        codec.decode(row, len(row[records.MASKED_LM_POSITIONS]) // 2)[1].ravel() for row in rows
    ]
    max_distance = -min(row[row > -1e29].min() for row in logits)
    # Float16 rounds a logit, or the range of a row, by a relative error of at most 2^-11.
    half_steps = {"compact": CompactCodec.steps.half_step}
    logit_error = max_distance * (2.0**-11 + half_steps.get(encoding, 0.0))
    report = _measure(model, made)
    assert report.num_examples == len(rows)
    # The error of the normalization is at most as large again.
    assert 0.0 < report.topk_error <= 2.0 * logit_error + 1e-4
    assert report.tail_error < 1e-3
    labels = np.concatenate([np.frombuffer(row[records.LABEL_LOG_PROBS], "<f2") for row in rows])
    assert report.num_positions == len(labels)
    assert 0.0 < report.label_error <= -labels.min() * 2.0**-11 + 1e-4
    assert set(report.kl_divergence) == {"1", "2"}
    for summary in report.kl_divergence.values():
        # If log-probabilities differ by at most e, the KL divergence is at most e.
        assert -1e-9 < summary.mean <= summary.max <= 2.0 * logit_error
        assert summary.mean <= summary.p99 <= summary.max
    assert report.top1_agreement > 0.95
    assert 0.3 < report.mass_kept < 1.0
    assert report.cached_calibration_error == pytest.approx(report.calibration_error, abs=0.02)
    assert report.hidden == {}
    sizes = cache.manifest.bytes_per_position()
    assert report.bytes_per_position == pytest.approx(sizes, abs=0.01)


def test_report_on_another_teacher_shows_large_errors(
    model, examples_dir, vocab_file, tmp_path
) -> None:
    other = save_tiny_bert(tmp_path / "other", vocab_file, seed=8, num_layers=2)
    report = _measure(model, make_cache(tmp_path / "cache", examples_dir, other))
    assert report.kl_divergence["1"].mean > 0.1
    assert report.top1_agreement < 0.5
    assert report.topk_error > 1.0
    assert report.label_error > 1.0


@pytest.mark.long
def test_agreement_and_calibration_equal_plain_loops(model, cache_dir) -> None:
    """The reference loops over the cache of the same teacher."""
    cache = _open(cache_dir)
    codec = cache_input.open_codec(cache_dir, cache.manifest)
    sums: dict[int, list[float]] = {}
    total = 0
    for row in read_rows(cache.directory):
        count = len(row[records.MASKED_LM_POSITIONS]) // 2
        labels = np.frombuffer(row[records.MASKED_LM_IDS], "<u2")
        tails = np.frombuffer(row[records.LOG_TAIL_MASSES], "<f4")[::2].astype(np.float64)
        ids, logits = codec.decode(row, count)
        for index in range(count):
            weights = np.exp(logits[index].astype(np.float64))
            confidence = (1.0 - np.exp(tails[index])) / weights.sum()
            bin_sums = sums.setdefault(min(14, int(confidence * 15)), [0.0, 0.0])
            bin_sums[0] += confidence
            bin_sums[1] += ids[index, 0] == labels[index]
            total += 1
    expected = sum(abs(right - confidence) for confidence, right in sums.values()) / total
    report = _measure(model, cache_dir)
    assert report.num_positions == total
    assert report.cached_calibration_error == pytest.approx(expected, abs=1e-9)
    assert report.top1_agreement > 0.99


@pytest.mark.parametrize(("encoding", "rounding"), [("float16", 2.0**-11), ("int8", 1 / 254)])
def test_hidden_states_equal_the_teachers_within_the_codecs_error(
    model, examples_dir, teacher_dir, tmp_path, encoding: str, rounding: float
) -> None:
    made = make_cache(
        tmp_path / "cache",
        examples_dir,
        teacher_dir,
        cache_hidden_states="0,1-3",
        hidden_encoding=encoding,
    )
    report = _measure(model, made, sample=20)
    assert set(report.hidden) == {"0", "1-3"}
    for hidden in report.hidden.values():
        # No number of a layer-normalized state of 32 numbers is above √32.
        assert 0.0 < hidden.largest_error < 32**0.5 * rounding * 1.1
        assert 0.999 < hidden.cosine_min <= hidden.cosine_mean <= 1.0 + 1e-12
    assert records.HIDDEN_STATES in report.bytes_per_position


def test_teachers_with_other_hidden_states_are_refused(
    examples_dir, teacher_dir, vocab_file, tmp_path
) -> None:
    made = make_cache(tmp_path / "cache", examples_dir, teacher_dir, cache_hidden_states="3")
    narrow = save_tiny_bert(tmp_path / "narrow", vocab_file, seed=1, hidden_size=16)
    model = model_directory.load_masked_lm(model_directory.find_model(narrow))
    with pytest.raises(InputError) as raised:
        _measure(model, made)
    assert (raised.value.subject, raised.value.received) == ("teacher", 16)
    flat = save_tiny_bert(tmp_path / "flat", vocab_file, seed=1, num_layers=2)
    model = model_directory.load_masked_lm(model_directory.find_model(flat))
    with pytest.raises(InputError) as raised:
        _measure(model, made)
    assert raised.value.subject == "teacher" and "0 to 2" in raised.value.expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (records.TOPK_LOGITS, b"\0" * 4, "received 2"),
        (records.TOPK_LOGITS, None, "topk_logits"),
        (records.LABEL_LOG_PROBS, b"\0" * 4, "label_log_probs: expected"),
        (records.LOG_TAIL_MASSES, "nan", "expected numbers, received NaN or infinity"),
    ],
)
def test_error_about_a_damaged_record_names_the_cache(
    model, cache_dir, tmp_path, name, value, message: str
) -> None:
    def change(rows: list[Features]) -> list[Features]:
        changed = []
        for row in rows:
            content = value
            if value == "nan":
                content = np.full(len(row[name]) // 4, np.nan, "<f4").tobytes()
            others = {key: old for key, old in row.items() if key != name}
            changed.append(others if content is None else {**others, name: content})
        return changed

    damaged = rewrite_cache(cache_dir, tmp_path / "damaged", change)
    with pytest.raises(InputError) as raised:
        _measure(model, damaged, sample=3)
    assert raised.value.subject == str(damaged)
    assert "broken record" in raised.value.received and message in raised.value.received


def test_all_numbers_of_a_report_are_finite(model, cache_dir) -> None:
    report = dataclasses.asdict(_measure(model, cache_dir, sample=5))
    assert report["num_examples"] == 5
    assert all(
        np.isfinite(list(summary.values())).all() for summary in report["kl_divergence"].values()
    )
