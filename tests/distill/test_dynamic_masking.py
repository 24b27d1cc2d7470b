"""Masks of windows that are masked while they are read: valid, new in each epoch, reproducible."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.distill import batches
from pipeline.distill.batches import EVALUATION, TRAINING, WindowReader
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import cache_input, cache_tokenizer, reader, serialization, token_counts
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import MicrobatchPlan
from pipeline.tokenizers import loading, vocabulary
from tests.distill.running import (
    assert_equal_arrays,
    damaged_copy,
    distilled,
    expect_same_after_interrupt,
    read_lines,
    refused,
)


@pytest.fixture
def cache(windows_dir) -> CacheInput:
    """The session's unmasked windows."""
    return cache_input.open_cache(windows_dir, None)


def _stored(cache: CacheInput, split: str = "train") -> list[bytes]:
    return [
        record
        for shard in cache.manifest.splits[split]
        for record in serialization.read_records(cache.directory / shard.file)
    ]


def _parse(windows: WindowReader, serialized: list[bytes], epoch: int) -> dict[str, np.ndarray]:
    epochs = np.full(len(serialized), epoch, np.int64)
    batch = windows.parse_batch(tf.constant(serialized), tf.constant(epochs))
    return {name: value.numpy() for name, value in batch.items()}


def _positions(windows: WindowReader, record: bytes, epochs: range) -> np.ndarray:
    """Returns the masked positions of a record in many epochs, one after another."""
    batch = windows.parse_batch(
        tf.constant([record] * len(epochs)), tf.constant(list(epochs), tf.int64)
    )
    return batch[records.MASKED_LM_POSITIONS].numpy()[batch[records.MASKED_LM_WEIGHTS] > 0]


def test_batches_have_the_format_of_static_examples(cache, examples_dir) -> None:
    """Compares names, dtypes and static shapes."""
    caches = (cache_input.open_cache(examples_dir, None), cache)
    datasets = [
        batches.training_batches(source, MicrobatchPlan(4), seed=1, start=0, shuffle_buffer_size=10)
        for source in caches
    ]
    assert datasets[0].element_spec == datasets[1].element_spec
    assert datasets[1].element_spec[0][records.INPUT_IDS].shape == (4, 48)
    datasets = [batches.evaluation_batches(source, batch_size=4, max_steps=9) for source in caches]
    assert datasets[0].element_spec == datasets[1].element_spec


def test_masks_are_whole_words_of_the_window(cache, vocab) -> None:
    """Checks the invariants of static examples over three epochs."""
    windows = WindowReader(cache, seed=3, purpose=TRAINING)
    serialized = _stored(cache)
    special = {vocab.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    mask_id = vocab.index("[MASK]")
    totals = dict.fromkeys(("tokens", "masked", "mask", "kept"), 0)
    for epoch in range(3):
        batch = _parse(windows, serialized, epoch)
        for row, record in enumerate(serialized):
            features = serialization.decode_example(record)
            true = np.frombuffer(features[records.INPUT_IDS], "<u2").astype(int)
            starts = set(np.frombuffer(features[records.WORD_STARTS], "<u2").tolist())
            ends = np.cumsum(np.frombuffer(features[records.SEGMENT_LENGTHS], "<u2"), dtype=int) - 1
            count = int(batch[records.MASKED_LM_WEIGHTS][row].sum())
            positions = batch[records.MASKED_LM_POSITIONS][row, :count]
            labels = batch[records.MASKED_LM_IDS][row, :count]
            ids = batch[records.INPUT_IDS][row]
            assert 0 < count <= 8
            assert count <= max(1, round(0.15 * len(true)))
            assert (np.diff(positions) > 0).all()
            assert (labels == true[positions]).all()
            assert not special & set(labels.tolist())
            assert not ids[len(true) :].any()
            unchanged = np.setdiff1d(np.arange(len(true)), positions)
            assert (ids[unchanged] == true[unchanged]).all()
            # A word is masked with all its tokens, or not at all.
            inside = [position for position in range(1, len(true)) if position not in ends]
            for before, position in itertools.pairwise(inside):
                if position not in starts:
                    assert (position in positions) == (before in positions)
            totals["tokens"] += len(true)
            totals["masked"] += count
            totals["mask"] += int((ids[positions] == mask_id).sum())
            totals["kept"] += int((ids[positions] == labels).sum())
    assert totals["masked"] > 1000
    # The share is below 0.15, because of words that do not fit and the limit of 8 of 48.
    assert 0.11 < totals["masked"] / totals["tokens"] <= 0.155
    assert abs(totals["mask"] / totals["masked"] - 0.8) < 0.04
    assert abs(totals["kept"] / totals["masked"] - 0.1) < 0.03


def test_masks_differ_between_epochs_and_repeat_with_the_seed(cache) -> None:
    serialized = _stored(cache)
    windows = WindowReader(cache, seed=3, purpose=TRAINING)
    first = _parse(windows, serialized, 0)
    again = _parse(WindowReader(cache, seed=3, purpose=TRAINING), serialized, 0)
    assert_equal_arrays(first, again)
    others = (
        _parse(windows, serialized, 1),
        _parse(WindowReader(cache, seed=4, purpose=TRAINING), serialized, 0),
        _parse(WindowReader(cache, seed=3, purpose=EVALUATION), serialized, 0),
    )
    name = records.MASKED_LM_POSITIONS
    # Short windows have few choices.
    full = (first[records.MASKED_LM_WEIGHTS].sum(axis=1) >= 5).nonzero()[0]
    assert len(full) > 20
    for other in others:
        same = (first[name][full] == other[name][full]).all(axis=1)
        assert same.mean() < 0.05


def test_masks_do_not_depend_on_the_batch(cache) -> None:
    windows = WindowReader(cache, seed=3, purpose=TRAINING)
    serialized = _stored(cache)[:20]
    whole = _parse(windows, serialized, 2)
    order = np.random.default_rng(0).permutation(20)
    mixed = _parse(windows, [serialized[index] for index in order], 2)
    assert_equal_arrays({name: value[order] for name, value in whole.items()}, mixed)
    single = [_parse(windows, [record], 2) for record in serialized]
    joined = {name: np.concatenate([batch[name] for batch in single]) for name in whole}
    assert_equal_arrays(whole, joined)
    # The rows of a batch may be of different epochs.
    epochs = tf.constant([0, 2] * 10, tf.int64)
    both = windows.parse_batch(tf.constant(serialized), epochs)
    zero = _parse(windows, serialized, 0)
    for name, value in both.items():
        np.testing.assert_array_equal(value[0::2], zero[name][0::2])
        np.testing.assert_array_equal(value[1::2], whole[name][1::2])


def _batches(cache: CacheInput, *, start: int, count: int) -> list[dict[str, np.ndarray]]:
    dataset = batches.training_batches(
        cache, MicrobatchPlan(8), seed=5, start=start, shuffle_buffer_size=30
    )
    return [{**inputs, **targets} for inputs, targets in dataset.take(count).as_numpy_iterator()]


def test_resumed_dataset_has_the_remaining_batches_with_the_masks_of_their_epochs(cache) -> None:
    total = cache.manifest.num_examples("train")
    count = 2 * total // 8 + 4
    whole = _batches(cache, start=0, count=count)
    for skipped in (1, total // 8, total // 8 + 1, count - 2):
        rest = _batches(cache, start=skipped * 8, count=count - skipped)
        for batch, resumed in zip(whole[skipped:], rest, strict=True):
            assert_equal_arrays(batch, resumed)
    # Each epoch has the same windows, with other masks.
    windows = WindowReader(cache, seed=5, purpose=TRAINING)
    stream = reader.training_records(cache, "train", seed=5, start=0, buffer=30)
    pairs = list(itertools.islice(stream.as_numpy_iterator(), count * 8))
    assert {epoch for _, epoch in pairs} == {0, 1, 2}
    for number, batch in enumerate(whole):
        for row, (record, epoch) in enumerate(pairs[number * 8 : number * 8 + 8]):
            masked = _parse(windows, [record], int(epoch))
            ids = batch[records.INPUT_IDS][row]
            np.testing.assert_array_equal(ids, masked[records.INPUT_IDS][0])


def test_evaluation_masks_are_the_same_each_time(cache) -> None:
    dataset = batches.evaluation_batches(cache, batch_size=8, max_steps=3)
    first, second = ([{**i, **t} for i, t in dataset.as_numpy_iterator()] for _ in range(2))
    assert len(first) == 3
    for batch, repeated in zip(first, second, strict=True):
        assert_equal_arrays(batch, repeated)
    windows = WindowReader(cache, seed=cache.manifest.seed, purpose=EVALUATION)
    expected = _parse(windows, _stored(cache, "eval")[:8], 0)
    np.testing.assert_array_equal(first[0][records.INPUT_IDS], expected[records.INPUT_IDS])


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_frequencies_of_masked_tokens_follow_the_weights(
    windows_config, tmp_path, smoothing: float
) -> None:
    """A chi-squared test of one masked token in each of many epochs."""
    folder = tmp_path / "windows"
    changes = {"max_predictions_per_seq": 1, "do_whole_word_mask": False}
    changes |= {"output_dir": str(folder), "mask_smoothing": smoothing}
    create_masked_examples(dataclasses.replace(windows_config, **changes))
    cache = cache_input.open_cache(folder, None)
    windows = WindowReader(cache, seed=3, purpose=TRAINING)
    record = max(_stored(cache), key=len)
    ids = np.frombuffer(serialization.decode_example(record)[records.INPUT_IDS], "<u2")
    draws = 6000
    seen = np.bincount(_positions(windows, record, range(draws)), minlength=len(ids))
    counts = np.load(folder / token_counts.TOKEN_COUNTS_FILE)[ids]
    special = cache.manifest.special_ids.values()
    weights = np.where(np.isin(ids, list(special)), 0.0, counts.astype(float) ** -smoothing)
    expected = draws * weights / weights.sum()
    assert seen.sum() == draws and not seen[weights == 0].any()
    real = expected > 0
    assert expected[real].min() > 20
    degrees = real.sum() - 1
    statistic = ((seen - expected)[real] ** 2 / expected[real]).sum()
    # Mean and deviation of chi-squared, which is nearly normal with about 40 degrees.
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
    if smoothing:
        rare, common = weights[real].argmax(), weights[real].argmin()
        assert seen[real][rare] > 1.5 * seen[real][common]


def test_reader_loads_the_tokenizer_of_the_windows(
    windows_config, spiece_file, bpe_file, tmp_path
) -> None:
    for file in (spiece_file, bpe_file):
        folder = tmp_path / file.stem
        changes = {"output_dir": str(folder), "vocab_file": str(file), "segments": "single"}
        create_masked_examples(dataclasses.replace(windows_config, **changes))
        cache = cache_input.open_cache(folder, None)
        original = loading.load_tokenizer(file, do_lower_case=None)
        loaded = cache_tokenizer.load_cache_tokenizer(cache)
        assert type(loaded) is type(original)
        np.testing.assert_array_equal(loaded.is_special(), original.is_special())
        batch = _parse(WindowReader(cache, seed=1, purpose=TRAINING), _stored(cache), 0)
        assert (batch[records.MASKED_LM_WEIGHTS].sum(axis=1) > 0).all()
        labels = batch[records.MASKED_LM_IDS][batch[records.MASKED_LM_WEIGHTS] > 0]
        assert not original.is_special()[labels].any()


def _changed(cache: CacheInput, **changes) -> CacheInput:
    return dataclasses.replace(cache, manifest=dataclasses.replace(cache.manifest, **changes))


def test_reader_refuses_invalid_manifests(cache) -> None:
    flags = {**cache.manifest.flags, "masked_lm_prob": "0.15"}
    with pytest.raises(InputError) as caught:
        WindowReader(_changed(cache, flags=flags), seed=1, purpose=TRAINING)
    assert caught.value.received == "'0.15'"
    other = vocabulary.VocabInfo(cache.manifest.vocab.size, "0" * 64)
    with pytest.raises(InputError, match="tokenizer"):
        WindowReader(_changed(cache, vocab=other), seed=1, purpose=TRAINING)


@pytest.fixture
def own_settings(windows_dir) -> dict:
    """Thirty steps on labels only, over more than one epoch."""
    return {
        "losses": {"masked_lm": 1.0},
        "input_dir": windows_dir,
        "train_batch_size": 16,
        "num_train_steps": 30,
        "learning_rate": 4e-3,
        "save_checkpoints_steps": 10,
        "log_steps": 5,
    }


@pytest.mark.long
def test_interrupted_run_equals_an_uninterrupted_run(config, cache, monkeypatch) -> None:
    # The second epoch begins before the checkpoint of step 20.
    assert cache.manifest.num_examples("train") < 20 * 16
    expect_same_after_interrupt(monkeypatch, config, update=26, step=20)
    lines = read_lines(config.output_dir)
    losses = {split: [] for split in ("train", "eval")}
    for line in lines:
        losses[line["split"]].append(line["loss"])
    assert losses["train"][-1] < 0.9 * losses["train"][0]
    assert losses["eval"] == sorted(losses["eval"], reverse=True)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"losses": {"kl_divergence": 1.0}}, "losses"),
        ({"truncation_factor": 4}, "truncation_factor"),
        ({"max_predictions_per_seq": 9}, "max_predictions_per_seq"),
    ],
)
def test_targets_that_unmasked_windows_lack_are_refused(config, changes, setting: str) -> None:
    with refused(setting):
        distilled(config, **changes)
    assert not config.output_dir.exists()


def test_damaged_counts_are_refused_before_training(config, windows_dir, tmp_path) -> None:
    file = token_counts.TOKEN_COUNTS_FILE
    path = damaged_copy(windows_dir, tmp_path / "damaged", file, 200)
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=str(path.parent))
    assert caught.value.subject == str(path)
