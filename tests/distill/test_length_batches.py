"""Microbatches of similar length have few shapes, and keep losses and gradients."""

import dataclasses
import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.distill import batches, preparation, training
from pipeline.distill.distiller import Distiller
from pipeline.distill.losses.base import LOSS_SHARES
from pipeline.distill.losses.weights import WeightSchedule
from pipeline.distill.replicas import Replicas
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import cache_input, length_buckets, reader, serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import MicrobatchPlan
from pipeline.storage.manifest import RUN_CONFIG_FILE
from tests.conftest import SENTENCES, make_cache
from tests.distill.running import (
    assert_close_lines,
    assert_equal_arrays,
    distilled,
    expect_same_after_interrupt,
    interrupt_at,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mixed_dir(tmp_path_factory, examples_config) -> pathlib.Path:
    """Masked examples of documents of up to 60 tokens, most of them short."""
    random = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("mixed")
    documents = [
        "".join(random.choice(SENTENCES, 3))[: int(length)]
        for length in np.minimum(3 + random.exponential(15, 300), 58)
    ]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    changes = {
        "corpora": (CorpusSource(input_dir=str(folder / "text.txt")),),
        "output_dir": str(folder / "masked"),
        "segments": "single",
        "max_seq_length": 60,
        "max_predictions_per_seq": 8,
        "dupe_factor": 1,
        "min_chars": 3,
    }
    create_masked_examples(dataclasses.replace(examples_config, **changes))
    return folder / "masked"


@pytest.fixture
def cache(mixed_dir) -> CacheInput:
    """The module's masked examples."""
    return cache_input.open_cache(mixed_dir, None)


@pytest.fixture(scope="module")
def mixed_cache_dir(tmp_path_factory, mixed_dir, still_teacher_dir) -> pathlib.Path:
    """A teacher cache of the module's examples, with hidden states of layers 2-3."""
    folder = tmp_path_factory.mktemp("mixed_cache") / "cache"
    return make_cache(folder, mixed_dir, still_teacher_dir, cache_hidden_states="2-3")


# Twelve examples are sorted together and cut into three microbatches of four.
GROUPS = MicrobatchPlan(group_size=12, num_microbatches=3, num_lengths=8)


def _batches(
    cache: CacheInput, *, count: int, start: int = 0, plan: MicrobatchPlan = GROUPS
) -> list[dict]:
    dataset = batches.training_batches(cache, plan, seed=5, start=start, shuffle_buffer_size=40)
    return [{**inputs, **targets} for inputs, targets in dataset.take(count).as_numpy_iterator()]


def _stream(cache: CacheInput, count: int) -> list[bytes]:
    """Returns the first records in shuffled order."""
    dataset = reader.training_records(cache, "train", seed=5, start=0, buffer=40)
    return [record for record, _ in itertools.islice(dataset.as_numpy_iterator(), count)]


def _input_ids(record: bytes) -> tuple[int, ...]:
    features = serialization.decode_example(record)
    return tuple(np.frombuffer(features[records.INPUT_IDS], "<u2").tolist())


def _rows(batches: list[dict]) -> list[tuple[int, ...]]:
    """Returns each row's tokens, without padding."""
    return [
        tuple(row[: mask.sum()].tolist())
        for batch in batches
        for row, mask in zip(batch[records.INPUT_IDS], batch[records.INPUT_MASK], strict=True)
    ]


def test_each_group_has_the_next_examples_sorted_by_length(cache) -> None:
    """Reads past the end of the epoch."""
    groups = cache.manifest.num_examples("train") // 12 + 2
    stream = [_input_ids(record) for record in _stream(cache, groups * 12)]
    made = _batches(cache, count=groups * 3)
    for number in range(groups):
        expected = stream[number * 12 : number * 12 + 12]
        assert _rows(made[number * 3 : number * 3 + 3]) == sorted(expected, key=len)


def test_resumed_dataset_has_the_remaining_batches(cache) -> None:
    """Resumes from several groups, past the end of the epoch."""
    groups = cache.manifest.num_examples("train") // 12 + 4
    whole = _batches(cache, count=groups * 3)
    for used in (1, 2, groups - 6, groups - 1):
        rest = _batches(cache, count=(groups - used) * 3, start=used * 12)
        for batch, resumed in zip(whole[used * 3 :], rest, strict=True):
            assert_equal_arrays(batch, resumed)


def test_loss_shares_equal_hand_computed_values() -> None:
    """Counts are 2 and 6 positions, 7 and 13 tokens, 4² + 3² and 5² + 8² pairs, 2 examples each."""
    batch = {
        records.SEGMENT_LENGTHS: tf.constant([[4, 0], [2, 1], [5, 0], [3, 5]]),
        records.MASKED_LM_WEIGHTS: tf.constant(
            [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], tf.float32
        ),
    }
    microbatches = batches.cut_group(batch, 2)
    expected = [[2 / 4, 7 / 10, 25 / 57, 1.0], [6 / 4, 13 / 10, 89 / 57, 1.0]]
    # Both rows of a microbatch have the same shares.
    for row in (0, 1):
        np.testing.assert_allclose(microbatches[LOSS_SHARES][:, row], expected, rtol=1e-6)
    assert microbatches[records.SEGMENT_LENGTHS].numpy().tolist() == [
        [[4, 0], [2, 1]],
        [[5, 0], [3, 5]],
    ]
    nothing = {**batch, records.MASKED_LM_WEIGHTS: tf.zeros((4, 4))}
    assert batches.cut_group(nothing, 2)[LOSS_SHARES][:, 0, 0].numpy().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("buckets", [2, 3, 8, 100])
def test_batches_have_few_shapes_that_fit_tightly(cache, buckets: int) -> None:
    lengths = length_buckets.bucket_lengths(60, buckets)
    assert len(lengths) <= buckets
    seen = set()
    plan = dataclasses.replace(GROUPS, num_lengths=buckets)
    for batch in _batches(cache, count=60, plan=plan):
        rows, length = batch[records.INPUT_IDS].shape
        width = batch[records.MASKED_LM_IDS].shape[1]
        seen.add((length, width))
        longest = batch[records.INPUT_MASK].sum(axis=1).max()
        most = batch[records.MASKED_LM_WEIGHTS].sum(axis=1).max()
        assert rows == 4
        assert length == min(size for size in lengths if size >= longest)
        assert width == min(size for size in (2, 4, 6, 8) if size >= most)
    assert len(seen) <= 4 * len(lengths)
    assert len({length for length, _ in seen}) > 1


@pytest.mark.parametrize("plan", [MicrobatchPlan(4), MicrobatchPlan(12, num_microbatches=3)])
def test_one_length_keeps_the_order_and_pads_all_inputs(cache, plan: MicrobatchPlan) -> None:
    """Batches have the order of the shuffled examples and the longest length."""
    stream = _stream(cache, 48)
    for number, batch in enumerate(_batches(cache, count=12, plan=plan)):
        parsed = reader.parse_batch(
            tf.constant(stream[number * 4 : number * 4 + 4]), cache.manifest
        )
        inputs, targets = batches.inputs_and_targets(parsed)
        expected = {name: value.numpy() for name, value in {**inputs, **targets}.items()}
        assert (LOSS_SHARES in batch) == (plan.num_microbatches > 1)
        assert_equal_arrays({name: batch[name] for name in batch if name != LOSS_SHARES}, expected)
        assert batch[records.INPUT_IDS].shape == (4, 60)


def test_trimming_cuts_off_only_padding(mixed_cache_dir) -> None:
    """Compares all features of a teacher cache, in the stored order of evaluation."""
    cache = cache_input.open_cache(mixed_cache_dir, None)
    made = []
    for buckets in (1, 8):
        dataset = batches.evaluation_batches(cache, batch_size=2, max_steps=99, buckets=buckets)
        made.append(list(dataset.as_numpy_iterator()))
    smaller = 0
    for whole, trimmed in zip(*made, strict=True):
        for padded, cut in zip(whole, trimmed, strict=True):
            assert padded.keys() == cut.keys()
            for name, value in cut.items():
                size = value.shape[1]
                smaller += size < padded[name].shape[1]
                np.testing.assert_array_equal(padded[name][:, :size], value, err_msg=name)
                if name in (records.INPUT_MASK, records.MASKED_LM_WEIGHTS):
                    assert not padded[name][:, size:].any()
    assert records.HIDDEN_STATES in made[0][0][1]
    assert smaller > 10


def test_trimming_keeps_positions_after_one_without_weight(cache) -> None:
    """A position has no weight if, for example, the student lacks its label."""
    parsed = dict(reader.parse_batch(tf.constant(_stream(cache, 4)), cache.manifest))
    weights = np.zeros((4, 8), np.float32)
    weights[2, [0, 4]] = 1.0
    parsed[records.MASKED_LM_WEIGHTS] = tf.constant(weights)
    trimmed = batches.trim_batch(parsed, cache.manifest, 8)
    assert trimmed[records.MASKED_LM_WEIGHTS].numpy().tolist() == weights[:, :6].tolist()


DISTRIBUTION = ("soft_cross_entropy", "kl_divergence", "probability_cosine")
LIVE = {
    "kl_divergence": 5.0,
    "masked_lm": 2.0,
    "hidden_cosine": 1.0,
    "hidden_mse": 1.0,
    "attention_mse": 100.0,
    "attention_score_mse": 10.0,
    "embedding_cosine": 5.0,
    "embedding_mse": 1.0,
}
CASES = {
    "cached": {
        "losses": dict.fromkeys((*DISTRIBUTION, "masked_lm", "hidden_cosine_masked"), 1.0),
        "layer_groups": "2-3:2",
        "teacher": None,
    },
    "live": {"losses": LIVE, "layer_groups": "1-2:1,3:2"},
    "relations": {"losses": {"relation_kl": 50.0, "embedding_mse": 1.0}, "layer_groups": "2:2"},
    "live, all positions": {
        "losses": {**LIVE, "soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "layer_groups": "1-2:1,3:2",
        "loss_positions": "all",
    },
}


def _prepare(case: str, cache_dir: str, teacher: str, **changes) -> preparation.Preparation:
    settings = {"teacher": teacher, **CASES[case], **changes}
    config = DistillConfig(
        output_dir="none",
        student=StudentConfig(init_from=teacher, student_layers=2),
        input_dir=cache_dir,
        **settings,
    )
    return preparation.prepare(config)


def _stored(run: preparation.Preparation) -> list[bytes]:
    dataset = reader.evaluation_records(run.cache, "train")
    return sorted(dataset.as_numpy_iterator(), key=lambda record: len(_input_ids(record)))


def _parse(run: preparation.Preparation, serialized: list[bytes]) -> dict[str, tf.Tensor]:
    manifest, codec = run.cache.manifest, None
    if manifest.teacher_info is not None:
        codec = cache_input.open_codec(run.cache.directory, manifest)
    return dict(reader.parse_batch(tf.constant(serialized), manifest, codec))


def _arrays(batch: dict[str, tf.Tensor]) -> list[dict[str, np.ndarray]]:
    inputs_and_targets = batches.inputs_and_targets(batch)
    return [
        {name: value.numpy() for name, value in features.items()} for features in inputs_and_targets
    ]


def _expect_equal_changes(expected: list[np.ndarray], received: list[np.ndarray]) -> None:
    assert sum(np.abs(change).max() > 1e-2 for change in expected) > 20
    for first, second in zip(expected, received, strict=True):
        largest = max(1.0, np.abs(first).max())
        np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-4 * largest)


def _trainable_weights(distiller: Distiller) -> list[np.ndarray]:
    return [np.array(variable) for variable in distiller.trainable_variables]


def expect_equal_losses(case: str, cache_dir: str, teacher: str) -> None:
    """Trains a step on padded rows and on the same rows trimmed, and evaluates on both."""
    run = _prepare(case, cache_dir, teacher)
    # Rows of several lengths, the shortest first.
    parsed = _parse(run, _stored(run)[:24:4])
    made = [parsed, batches.trim_batch(parsed, run.cache.manifest, 8)]
    assert made[1][records.INPUT_IDS].shape[1] <= 24 and made[0][records.INPUT_IDS].shape[1] == 60
    assert made[1][records.MASKED_LM_IDS].shape[1] < 8
    reports, changes = [], []
    for batch in made:
        distiller = training.build_distiller(run)
        # With a learning rate of 1 and plain SGD, the change of a weight is its gradient.
        jit = keras.config.backend() == "jax"
        distiller.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=jit)
        before = _trainable_weights(distiller)
        inputs, targets = _arrays(batch)
        distiller.evaluate(tf.data.Dataset.from_tensors((inputs, targets)), verbose=0)
        report = dict(distiller.evaluation_report())
        distiller.reset_metrics()
        distiller.train_on_batch(inputs, targets)
        reports.append({**report, "trained": distiller.training_report()["loss"]})
        after = _trainable_weights(distiller)
        changes.append([new - old for old, new in zip(before, after, strict=True)])
    assert set(CASES[case]["losses"]) < set(reports[0])
    for name, value in reports[0].items():
        np.testing.assert_allclose(reports[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    _expect_equal_changes(*changes)


def expect_equal_updates(case: str, cache_dir: str, teacher: str) -> None:
    """Makes two updates on a batch, and on three microbatches of very different lengths."""
    schedules = {name: WeightSchedule("linear", 0.5) for name in CASES[case]["losses"]}
    run = _prepare(case, cache_dir, teacher, loss_schedules=schedules, num_train_steps=2)
    stored = _stored(run)
    whole = _parse(run, stored[:: len(stored) // 8][:9])
    cut = batches.cut_group(whole, 3)
    untrimmed = [{name: value[number] for name, value in cut.items()} for number in range(3)]
    trimmed = [batches.trim_batch(batch, run.cache.manifest, 8) for batch in untrimmed]
    assert len({batch[records.INPUT_IDS].shape[1] for batch in trimmed}) == 3
    # All shares differ except the last, because microbatches have equally many examples.
    assert np.ptp(cut[LOSS_SHARES], axis=0)[..., :3].min() > 0.5
    changes = []
    for microbatches in ([whole], trimmed):
        distiller = training.build_distiller(run, len(microbatches))
        steps = len(microbatches) if len(microbatches) > 1 else None
        distiller.compile(
            optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps),
            jit_compile=keras.config.backend() == "jax",
        )
        before = _trainable_weights(distiller)
        for batch in [*microbatches, *microbatches]:
            distiller.train_on_batch(*_arrays(batch))
        after = _trainable_weights(distiller)
        changes.append([new - old for old, new in zip(before, after, strict=True)])
    _expect_equal_changes(*changes)


@pytest.mark.long
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "live")) for case in CASES]
)
def test_microbatches_keep_losses_and_gradients(
    case, mixed_cache_dir, mixed_dir, still_teacher_dir
):
    folder = mixed_cache_dir if case == "cached" else mixed_dir
    expect_equal_losses(case, str(folder), str(still_teacher_dir))
    expect_equal_updates(case, str(folder), str(still_teacher_dir))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_microbatches_keep_losses_and_gradients_on_jax(
    mixed_cache_dir, mixed_dir, still_teacher_dir
) -> None:
    code = (
        "import sys; from tests.distill import test_length_batches as t; "
        "cached, plain, teacher = sys.argv[1:]; "
        "[t.expect_equal_losses(case, cached if case == 'cached' else plain, teacher) "
        "for case in t.CASES]; t.expect_equal_updates('live', plain, teacher)"
    )
    backend = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | {**backend, "PYTHONPATH": str(ROOT)}
    folders = [str(folder) for folder in (mixed_cache_dir, mixed_dir, still_teacher_dir)]
    result = subprocess.run(
        [sys.executable, "-c", code, *folders],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def own_settings(mixed_cache_dir, still_teacher_dir) -> dict:
    """Two of the teacher's three layers; twelve updates of two batches."""
    return {
        "student": StudentConfig(init_from=still_teacher_dir, student_layers=2),
        "input_dir": mixed_cache_dir,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_batch_size": 4,
        "save_checkpoints_steps": 4,
        "shuffle_buffer_size": 40,
    }


@pytest.mark.slow
def test_interrupted_run_equals_an_uninterrupted_run(config, monkeypatch) -> None:
    """The two batches of an update are sorted together."""
    expect_same_after_interrupt(monkeypatch, config, update=6, step=4)


@pytest.mark.parametrize(
    ("given", "recorded", "expected"), [(None, None, 4), (None, 8, 8), (2, 8, 2), (3, None, 3)]
)
def test_number_of_lengths_is_given_or_recorded_or_by_device(
    config, monkeypatch, given: int | None, recorded: int | None, expected: int
) -> None:
    if recorded is not None:
        config.output_dir.make_directory()
        (config.output_dir / RUN_CONFIG_FILE).write_json({"length_buckets": recorded})
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["tpu:0"])
    chosen = training.choose_for_devices(
        dataclasses.replace(config, length_buckets=given), Replicas()
    )
    assert chosen.length_buckets == expected


def test_evaluation_is_equal_with_one_and_eight_lengths(config) -> None:
    reports = [distilled(config, do_train=False, length_buckets=buckets) for buckets in (1, 8)]
    assert reports[0].keys() == reports[1].keys()
    for name in reports[0].keys() - {"examples_per_second"}:
        assert reports[1][name] == pytest.approx(reports[0][name], rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_training_equals_training_on_padded_batches(config, tmp_path) -> None:
    """Compares eight lengths, one length, and one batch of all examples of an update."""
    changes = [
        {},
        {"length_buckets": 1},
        {"length_buckets": 1, "train_batch_size": 8, "gradient_accumulation_steps": 1},
    ]
    made = []
    for number, change in enumerate(changes):
        folder = tmp_path / f"student{number}"
        made.append(dataclasses.replace(config, output_dir=str(folder), **change))
        training.distill(made[-1])
    for other in made[1:]:
        assert_close_lines(made[0].output_dir, other.output_dir)


@pytest.mark.slow
def test_run_resumes_with_other_microbatches(config, monkeypatch, tmp_path) -> None:
    """Another device, for example, leads to another number of microbatches."""
    training.distill(config)
    cut = dataclasses.replace(config, output_dir=str(tmp_path / "cut"))
    counts, plan = [], length_buckets.plan_microbatches

    def planned(*args, **settings):
        counts.append(plan(*args, **settings).num_microbatches)
        return plan(*args, **settings)

    monkeypatch.setattr(length_buckets, "plan_microbatches", planned)
    monkeypatch.setitem(training._MICROBATCH_COSTS, "cpu", 10**6)
    interrupt_at(monkeypatch, cut, update=6, step=4)
    monkeypatch.setitem(training._MICROBATCH_COSTS, "cpu", 0)
    training.distill(cut)
    assert counts == [2, 8]
    assert_close_lines(config.output_dir, cut.output_dir, last=3)
