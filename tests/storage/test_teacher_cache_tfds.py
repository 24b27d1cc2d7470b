"""A cache read by tensorflow_datasets holds what the project's own reader finds."""

import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import cache_input, reader, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.teacher_cache_tfds import TeacherCache


def _listing(directory) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_equal_values_to_our_reader(cache_dir, split: str) -> None:
    before = _listing(cache_dir)
    manifest = manifests.load(cache_dir)
    builder = TeacherCache(cache_dir)
    found = list(tfds.as_numpy(builder.as_dataset(split=split)))
    assert len(found) == manifest.num_examples(split) == builder.info.splits[split].num_examples
    serialized = reader.evaluation_records(cache_dir, manifest, split).batch(len(found))
    codec = cache_input.open_codec(cache_dir, manifest)
    batch = reader.parse_batch(next(iter(serialized)), manifest, codec)
    order = {bytes(example[records.EXAMPLE_ID]): example for example in found}
    rows = serialized.unbatch().as_numpy_iterator()
    for row, record in enumerate(rows):
        ours = serialization.decode_example(record)
        theirs = order[ours[records.EXAMPLE_ID]]
        count = len(theirs[records.MASKED_LM_POSITIONS])
        for name in (
            records.MASKED_LM_POSITIONS,
            records.MASKED_LM_IDS,
            records.TOPK_IDS,
            records.TOPK_LOGITS,
            records.LOG_TAIL_MASSES,
        ):
            np.testing.assert_array_equal(theirs[name], batch[name][row, :count])
        length = len(theirs[records.INPUT_IDS])
        np.testing.assert_array_equal(
            theirs[records.INPUT_IDS], batch[records.INPUT_IDS][row, :length]
        )
        ids, logits = codec.decode(ours, count)
        np.testing.assert_array_equal(theirs[records.TOPK_IDS], ids)
        np.testing.assert_array_equal(theirs[records.TOPK_LOGITS], logits)
        labels = np.frombuffer(ours[records.LABEL_LOG_PROBS], "<f2")
        np.testing.assert_array_equal(theirs[records.LABEL_LOG_PROBS], labels)
    assert _listing(cache_dir) == before


def test_splits_statistics_and_copies(cache_dir) -> None:
    manifest = manifests.load(cache_dir)
    builder = TeacherCache(cache_dir)
    total = manifest.num_examples("train")
    part = list(builder.as_dataset(split="train[:3]"))
    rest = list(builder.as_dataset(split="train[3:]"))
    assert (len(part), len(rest)) == (3, total - 3)
    splits = builder.info.splits
    assert splits["train"].num_bytes == sum(shard.bytes for shard in manifest.splits["train"])
    assert splits["train"].num_shards == len(manifest.splits["train"])
    assert builder.info.metadata["truncation_factor"] == 16
    assert builder.info.features[records.TOPK_LOGITS].shape == (None, 16)
    copy = pickle.loads(pickle.dumps(builder))
    assert copy.info.splits["eval"].num_examples == manifest.num_examples("eval")
    builder.download_and_prepare()


def test_masked_examples_too(examples_dir) -> None:
    builder = TeacherCache(examples_dir)
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="eval"))))
    assert records.TOPK_IDS not in example and records.INPUT_IDS in example


def test_unmasked_windows_too(windows_dir) -> None:
    loaded = manifests.load(windows_dir)
    builder = TeacherCache(windows_dir)
    found = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert len(found) == loaded.num_examples("train")
    stored = {
        features[records.EXAMPLE_ID]: features
        for shard in loaded.splits["train"]
        for record in serialization.read_records(windows_dir / shard.file)
        for features in [serialization.decode_example(record)]
    }
    for example in found:
        features = stored[bytes(example[records.EXAMPLE_ID])]
        assert example.keys() == features.keys()
        assert {name: value.tobytes() for name, value in example.items()} == features


def test_some_of_the_shards(cache_dir, tmp_path) -> None:
    """A cache made from a glob of shards has a part of those that the names count."""
    folder = tmp_path / "part"
    shutil.copytree(cache_dir, folder)
    manifest = manifests.load(folder)
    kept = manifest.splits["train"][1:2]
    value = manifest.to_json()
    value["splits"] = {"train": list(value["splits"]["train"][1:2])}
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_json(value)
    builder = TeacherCache(folder)
    assert len(list(builder.as_dataset(split="train"))) == kept[0].num_examples


def test_a_directory_that_is_no_cache(tmp_path, cache_dir) -> None:
    with pytest.raises(InputError, match="expected a complete cache .*, which is no cache"):
        TeacherCache(tmp_path)
    folder = tmp_path / "broken"
    shutil.copytree(cache_dir, folder)
    next(folder.glob("train-*.tfrecord")).unlink()
    with pytest.raises(InputError, match="this shard is missing"):
        TeacherCache(folder)
