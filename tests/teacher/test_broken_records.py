"""Records with valid checksums and invalid content: each stage names the shard and stops."""

import collections
import pathlib

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import serialization
from pipeline.storage.cache_input import open_cache, open_codec
from pipeline.storage.codecs import CODECS
from pipeline.storage.records import read_examples
from tests.fuzz.storage_readers import SHARD, write_examples, write_teacher_cache
from tools.cache_analysis import dense_sample, merging


def _ids(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


def _change_first(folder: pathlib.Path, **features: bytes | None) -> pathlib.Path:
    """Replaces features of the first record; None removes a feature."""
    path = folder / SHARD
    first, *others = serialization.read_records(path)
    changed = serialization.decode_example(first) | features
    present = {name: value for name, value in changed.items() if value is not None}
    serialized = [serialization.encode_example(present), *others]
    path.write_bytes(b"".join(map(serialization.frame_record, serialized)))
    return path


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({records.INPUT_IDS: None}, "'input_ids'"),
        ({records.INPUT_IDS: b"123"}, "input_ids: expected numbers of 2 bytes, received 3 bytes"),
        (
            {records.SEGMENT_LENGTHS: b""},
            "segment lengths that sum to 8, received 0 with the sum 0",
        ),
        ({records.SEGMENT_LENGTHS: _ids(5, 4)}, "that sum to 8, received 2 with the sum 9"),
        ({records.MASKED_LM_POSITIONS: _ids(2, 4, 8)}, "expected one label per masked position"),
        ({records.MASKED_LM_POSITIONS: _ids(2)}, "expected one label per masked position"),
        (
            {records.MASKED_LM_IDS: _ids(1, 2, 99)},
            "expected token ids from 0 to 17, received 1 to 99",
        ),
        (
            {records.INPUT_IDS: _ids(*[2] * 17), records.SEGMENT_LENGTHS: _ids(9, 8)},
            "expected at most 16 input_ids, received 17",
        ),
        (
            {
                records.MASKED_LM_POSITIONS: _ids(1, 2, 3, 4, 5),
                records.MASKED_LM_IDS: _ids(1, 2, 3, 4, 5),
            },
            "expected at most 4 masked_lm_ids, received 5",
        ),
    ],
)
def test_error_about_a_broken_masked_example_names_shard_and_feature(
    tmp_path: pathlib.Path, features: dict[str, bytes | None], message: str
) -> None:
    write_examples(tmp_path)
    cache = open_cache(tmp_path, None)
    path = tmp_path / SHARD
    assert len(list(read_examples(path, cache.manifest))) == 2
    _change_first(tmp_path, **features)
    for read, name in (
        (lambda: list(read_examples(path, cache.manifest)), "broken record 0: "),
        (lambda: dense_sample.draw(cache, 100), "broken record: "),
    ):
        with pytest.raises(InputError) as raised:
            read()
        assert raised.value.subject == str(path)
        assert raised.value.received.startswith(name) and message in raised.value.received


def test_merging_refuses_topk_lists_with_repeated_ids(tmp_path: pathlib.Path) -> None:
    # A list with repetitions has fewer distinct ids than its length.
    (tmp_path / "cache").mkdir()
    write_teacher_cache(tmp_path / "cache", "float16")
    path = _change_first(tmp_path / "cache", **{records.TOPK_IDS: _ids(*[7] * 12)})
    caches = [open_cache(tmp_path / "cache", None)] * 2
    merger = merging.CacheMerger(caches, (0.5, 0.5), CODECS["float16"](18, 4), lambda count: None)
    with pytest.raises(InputError, match=f"^{path}: topk_ids: .*at least 4 at each"):
        list(merger.records(SHARD, collections.Counter()))


@pytest.mark.parametrize("states", [None, b"12", np.full((3, 2, 4), np.inf, "<f2").tobytes()])
def test_damaged_hidden_states_are_refused(tmp_path: pathlib.Path, states: bytes | None) -> None:
    write_teacher_cache(tmp_path, "compact", hidden="float16")
    _change_first(tmp_path, **{records.HIDDEN_STATES: states})
    cache = open_cache(tmp_path, None)
    codec = open_codec(tmp_path, cache.manifest)
    first, second = read_examples(tmp_path / SHARD, cache.manifest)
    assert dense_sample.decode_targets(cache, codec, [second]).hidden_states.shape == (3, 2, 4)
    with pytest.raises(InputError) as raised:
        dense_sample.decode_targets(cache, codec, [first])
    assert raised.value.subject == str(tmp_path)
    assert f"broken record {'01' * 16}: " in raised.value.received


@pytest.mark.parametrize("example_id", [None, b"x" * 10_000])
def test_a_record_without_its_id_is_refused(tmp_path: pathlib.Path, example_id) -> None:
    write_teacher_cache(tmp_path, "compact", hidden="float16")
    path = _change_first(tmp_path, **{records.EXAMPLE_ID: example_id})
    cache = open_cache(tmp_path, None)
    with pytest.raises(InputError) as raised:
        list(read_examples(path, cache.manifest))
    assert raised.value.subject == str(path) and "example_id" in str(raised.value.received)
    assert len(str(raised.value)) < 300


def test_compact_codec_refuses_counts_beyond_the_ids_of_a_record() -> None:
    # A few compressed bytes would otherwise become arrays of many gigabytes.
    codec = CODECS["compact"](2**20, 2**20, True, np.zeros(2**20, np.int64))
    features = dict.fromkeys((records.TOPK_IDS, records.TOPK_LOGITS), b"")
    features[records.TOPK_COUNTS] = _ids(*[1] * 65)
    with pytest.raises(ValueError, match="expected at most 67108864 ids in a record, received 65"):
        codec.decode(features, 65)
