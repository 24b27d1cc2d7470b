"""Plans equal measurements of the planned caches."""

import dataclasses

import numpy as np
import pytest

from data_specs import records
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import LOGITS
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs import CODECS
from pipeline.storage.records import MaskedExample
from pipeline.teacher import forward
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import make_cache
from tests.tools.conftest import read_rows
from tools.cache_analysis import planning

ALL = 10**6


@pytest.fixture(scope="module")
def model(teacher_dir):
    return model_directory.load_masked_lm(model_directory.find_model(teacher_dir))


@pytest.fixture(scope="module")
def config(examples_dir, teacher_dir) -> TeacherCacheConfig:
    return TeacherCacheConfig(
        output_dir="", input_dir=str(examples_dir), teacher=str(teacher_dir), predict_batch_size=8
    )


def _measure(model, config, sample: int, factors: list[int], mass: float | None = None):
    return planning.measure_plans(
        model,
        cache_input.open_cache(config.input_dir, None),
        dataclasses.replace(config, truncation_mass=mass),
        sample=sample,
        truncation_factors=factors,
        logit_encodings=list(CODECS),
    )


@pytest.mark.parametrize("mass", [None, 0.9])
@pytest.mark.parametrize("encoding", CODECS)
def test_planned_sizes_equal_those_of_the_cache(
    model, config, examples_dir, teacher_dir, tmp_path, encoding: str, mass: float | None
) -> None:
    made = make_cache(
        tmp_path / "cache", examples_dir, teacher_dir, logit_encoding=encoding, truncation_mass=mass
    )
    manifest = manifests.load(made)
    measured = _measure(model, config, ALL, [4, 16], mass)
    (plan,) = (
        plan
        for plan in measured.plans
        if (plan.logit_encoding, plan.truncation_factor) == (encoding, 16)
    )
    sizes = manifest.bytes_per_position()
    assert set(plan.bytes_per_position) == set(sizes)
    # In another batch, a logit may be rounded to the other of two steps.
    assert plan.bytes_per_position == pytest.approx(sizes, rel=1e-3, abs=0.01)
    total = sum(shard.bytes for shard in manifest.shards)
    assert measured.num_examples == sum(shard.num_examples for shard in manifest.shards)
    assert plan.example_bytes * measured.num_examples == pytest.approx(total, rel=1e-3)
    assert plan.ids_per_position == pytest.approx(manifest.ids_per_position(), rel=1e-3)
    stored = [row[records.LOG_TAIL_MASSES] for row in read_rows(made)]
    tails = np.frombuffer(b"".join(stored), "<f4").astype(np.float64)[::2]
    assert len(tails) == measured.num_positions
    assert plan.mass_kept == pytest.approx(1.0 - np.exp(tails).mean(), abs=1e-4)


@pytest.mark.parametrize(
    "stored",
    [
        {"cache_hidden_states": "1-2", "hidden_encoding": "int8"},
        {"cache_embedding": "mean"},
        {"cache_hidden_states": "1,2", "cache_embedding": "cls"},
    ],
)
def test_planned_sizes_include_hidden_states_and_embeddings(
    model, config, examples_dir, teacher_dir, tmp_path, stored: dict[str, str]
) -> None:
    made = make_cache(tmp_path / "cache", examples_dir, teacher_dir, **stored)
    manifest = manifests.load(made)
    measured = _measure(model, dataclasses.replace(config, **stored), ALL, [16])
    plan = measured.plans[0]
    assert plan.bytes_per_position == pytest.approx(manifest.bytes_per_position(), rel=1e-9)
    total = sum(shard.bytes for shard in manifest.shards)
    assert plan.example_bytes * measured.num_examples == pytest.approx(total, rel=1e-9)


def test_divergences_decrease_with_k_and_vanish_for_the_whole_vocabulary(
    model, config, vocab
) -> None:
    factors = [2, 8, 32, len(vocab)]
    plans = _measure(model, config, 12, factors).plans
    assert [plan.truncation_factor for plan in plans] == factors * len(CODECS)
    by_codec = [plans[start : start + 4] for start in range(0, len(plans), 4)]
    for name, of_codec in zip(CODECS, by_codec, strict=True):
        means = [plan.kl_dense.mean for plan in of_codec]
        assert means == sorted(means, reverse=True)
        assert means[0] > 0.01
        all_tokens = of_codec[-1]
        assert all_tokens.mass_kept == pytest.approx(1.0)
        # Only the codec's error remains, which is of second order in the logits' steps.
        bound = 1e-5 if name == "float16" else 1e-3
        for spread in (all_tokens.kl_dense, all_tokens.kl_bucket, all_tokens.kl_reverse):
            assert -1e-12 < spread.mean <= spread.max < bound
        for plan in of_codec:
            assert plan.kl_bucket.mean <= plan.kl_bucket.max < bound
            assert plan.kl_dense.max >= plan.kl_dense.mean >= plan.kl_bucket.mean - 1e-12
    # The tail does not depend on the codec.
    masses = {tuple(round(plan.mass_kept, 12) for plan in of_codec) for of_codec in by_codec}
    assert len(masses) == 1


@pytest.mark.long
def test_planned_divergence_equals_that_of_the_cache(model, config, cache_dir) -> None:
    """The reference sums p log(p / q) over the vocabulary, with q decoded from a cache."""
    plans = _measure(model, config, ALL, [16]).plans
    cache = cache_input.open_cache(cache_dir, None)
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    run = forward.compile_forward(model, lambda outputs, batch: {LOGITS: outputs[LOGITS]})
    divergences = []
    for features in read_rows(cache_dir):
        example = MaskedExample.from_features(features, cache.manifest.vocab.size)
        divergences += _plain_divergences(run, example, codec)
    assert plans[0].logit_encoding == "float16"
    assert plans[0].kl_dense.mean == pytest.approx(np.mean(divergences), rel=1e-3)
    assert plans[0].kl_dense.max == pytest.approx(np.max(divergences), rel=1e-3)


def _plain_divergences(run, example, codec) -> list[float]:
    count = len(example.masked_lm_ids)
    batch = forward.build_batch(
        [example], batch_size=1, max_seq_length=48, max_predictions_per_seq=8
    )
    logits = run(batch)[LOGITS].astype(np.float64)[0, :count]
    ids, cached = codec.decode(dict(example.features), count)
    tails = np.frombuffer(example.features[records.LOG_TAIL_MASSES], "<f4")[::2]
    divergences = []
    for row in range(count):
        p = np.exp(logits[row] - logits[row].max())
        p /= p.sum()
        tail = np.exp(np.float64(tails[row]))
        q = np.full(len(p), tail / (len(p) - len(ids[row])))
        weights = np.exp(cached[row].astype(np.float64))
        q[ids[row]] = (1.0 - tail) * weights / weights.sum()
        divergences.append(float((p * np.log(p / q)).sum()))
    return divergences


def test_planned_times_include_the_packing(model, config) -> None:
    plans = _measure(model, config, 12, [4, 64]).plans
    assert all(plan.seconds > 0.0 for plan in plans)
    assert len({plan.seconds for plan in plans}) > 1
