"""A sample is deterministic, and its logits equal those of a plain call of the teacher."""

import dataclasses

import msgspec
import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import LOGITS
from pipeline.storage import cache_input, length_buckets
from pipeline.teacher import forward
from tests.tools.conftest import read_rows, read_shard
from tools.cache_analysis import dense_sample


@pytest.fixture(scope="module")
def examples(examples_dir) -> cache_input.CacheInput:
    return cache_input.open_cache(examples_dir, None)


@pytest.fixture(scope="module")
def model(teacher_dir):
    source = model_directory.find_model(teacher_dir)
    return model_directory.load_masked_lm(source)


def _names(drawn) -> list[bytes]:
    return [example.features[records.EXAMPLE_ID] for example in drawn]


def _stored(cache, *splits: str) -> list[bytes]:
    return [row[records.EXAMPLE_ID] for row in read_rows(cache.directory, *splits)]


def test_a_sample_is_deterministic_and_in_stored_order(examples) -> None:
    stored = _stored(examples, "train", "eval")
    drawn = _names(dense_sample.draw(examples, 20))
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn, key=stored.index) == _names(dense_sample.draw(examples, 20))
    seed = dataclasses.replace(examples.manifest, seed=examples.manifest.seed + 1)
    other = _names(dense_sample.draw(dataclasses.replace(examples, manifest=seed), 20))
    assert other != drawn


def test_a_sample_has_records_of_all_shards(examples) -> None:
    drawn = set(_names(dense_sample.draw(examples, 40)))
    for shard in examples.manifest.shards:
        names = {row[records.EXAMPLE_ID] for row in read_shard(examples.directory, shard.file)}
        assert names & drawn


def test_a_sample_larger_than_the_directory_has_all_records(examples) -> None:
    assert _names(dense_sample.draw(examples, 10**6)) == _stored(examples, "train", "eval")


def test_a_directory_without_examples_is_refused(examples) -> None:
    manifest = dataclasses.replace(examples.manifest, splits={"train": ()})
    with pytest.raises(InputError) as refused:
        dense_sample.draw(dataclasses.replace(examples, manifest=manifest), 5)
    assert refused.value.subject == str(examples.directory)
    assert refused.value.expected == "examples with masked positions"


def test_a_shard_with_fewer_records_than_in_the_manifest_is_refused(examples) -> None:
    shards = examples.manifest.splits["eval"]
    more = tuple(msgspec.structs.replace(shard, num_examples=10**4) for shard in shards)
    manifest = dataclasses.replace(examples.manifest, splits={"eval": more})
    with pytest.raises(InputError, match=r"eval-.*: .*at least \d+ records, received \d+; "):
        dense_sample.draw(dataclasses.replace(examples, manifest=manifest), 9_999)


def test_batched_logits_equal_those_of_single_examples(examples, model) -> None:
    drawn = dense_sample.draw(examples, 30)
    batches = list(
        dense_sample.run_teacher(
            model,
            drawn,
            examples.manifest,
            batch_size=8,
            select=lambda outputs, batch: {"twice": outputs[LOGITS] * 2},
        )
    )
    assert sorted(_names(e for b in batches for e in b.examples)) == sorted(_names(drawn))
    for batch in batches:
        assert batch.seconds > 0.0
        lengths = {length_buckets.padded_length(len(e.input_ids), 48) for e in batch.examples}
        assert len(lengths) == 1
        np.testing.assert_array_equal(batch.outputs["twice"], batch.logits * 2)
        covered = np.concatenate([np.arange(10**4)[block] for block in batch.blocks()])
        assert covered.tolist() == list(range(len(batch.logits)))
        begin, end = batch.row_splits[:2]
        example = batch.examples[0]
        np.testing.assert_array_equal(batch.labels[begin:end], example.masked_lm_ids)
        alone = forward.build_batch(
            [example], batch_size=1, max_seq_length=48, max_predictions_per_seq=8
        )
        expected = np.asarray(model(alone, training=False))[0, : end - begin]
        np.testing.assert_allclose(batch.logits[begin:end], expected, atol=2e-4)


def test_a_teacher_with_nan_logits_is_refused(examples, teacher_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    model.head.bias.assign(np.full(model.head.bias.shape, np.nan, np.float32))
    drawn = dense_sample.draw(examples, 3)
    with pytest.raises(InputError, match=r"^teacher: .*finite logits"):
        list(dense_sample.run_teacher(model, drawn, examples.manifest, batch_size=4))
