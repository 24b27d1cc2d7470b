"""Typed records: decoding inverts encoding, and contradictory features are refused."""

import numpy as np
import pytest

from data_specs import records
from pipeline.storage import arrays, cache_input, manifest, serialization
from pipeline.storage.codecs import CODECS, HIDDEN_CODECS
from pipeline.storage.codecs.base import NO_ID
from pipeline.storage.records import MaskedExample, TeacherTargets, Window, read_examples
from tests.fuzz.storage_readers import SHARD, write_examples, write_teacher_cache, write_windows


@pytest.mark.parametrize(
    ("write", "kind"), [(write_examples, MaskedExample), (write_windows, Window)]
)
def test_encoding_a_decoded_input_gives_the_same_features(tmp_path, write, kind) -> None:
    write(tmp_path)
    described = manifest.load(tmp_path)
    for record in serialization.read_records(tmp_path / SHARD):
        example = kind.from_record(record, described)
        features = serialization.decode_example(record)
        assert example.to_features(described.vocab.size) == features == example.features


def test_true_ids_have_the_labels_at_masked_positions(tmp_path) -> None:
    write_examples(tmp_path)
    example = next(read_examples(tmp_path / SHARD, manifest.load(tmp_path)))
    assert example.true_ids().tolist() == [2, 5, 6, 7, 8, 9, 10, 3]
    assert example.input_ids.tolist() == [2, 5, 4, 7, 4, 9, 10, 3]


@pytest.mark.parametrize("encoding", CODECS)
@pytest.mark.parametrize("hidden", [None, *HIDDEN_CODECS])
@pytest.mark.parametrize("variable", [False, True])
def test_encoding_decoded_targets_gives_the_same_features(
    tmp_path, encoding, hidden, variable
) -> None:
    write_teacher_cache(tmp_path, encoding, variable=variable, hidden=hidden)
    described = manifest.load(tmp_path)
    info, codec = described.teacher_info, cache_input.open_codec(tmp_path, described)
    examples = list(read_examples(tmp_path / SHARD, described))
    targets = [TeacherTargets.from_features(example.features, codec, info) for example in examples]
    joined = TeacherTargets.join(targets)
    packed = joined.to_features(codec, np.array([0, 3, 6]), info.hidden_codec())
    # An embedding belongs to the example, so that it is not among the targets of positions.
    others = {feature.name for feature in records.MASKED_EXAMPLE_FEATURES} | {records.EMBEDDING}
    for example, features in zip(examples, packed, strict=True):
        stored = {name: value for name, value in example.features.items() if name not in others}
        assert features.keys() == stored.keys()
        again = TeacherTargets.from_features({**example.features, **features}, codec, info)
        np.testing.assert_array_equal(again.ids, joined[:3].ids)
        joined = joined[3:]
    p, rest = targets[0].probabilities(2.0, k=2)
    assert p.shape == (3, 2) and np.allclose(p.sum(-1) + rest, 1.0)
    assert targets[0].counts.tolist() == ([4, 2, 4] if variable else [4, 4, 4])
    assert (targets[0].ids[1, 2:] == NO_ID).all() is np.bool_(variable)
    with pytest.raises(ValueError, match="temperature"):
        targets[0].probabilities(3.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (records.LOG_TAIL_MASSES, bytes(4)),
        (records.LOG_TAIL_MASSES, np.full((3, 2), np.nan, "<f4").tobytes()),
        (records.LABEL_LOG_PROBS, bytes(3)),
        (records.TOPK_LOGITS, np.full((3, 4), np.inf, "<f2").tobytes()),
        (records.HIDDEN_STATES, np.full((3, 2, 4), np.inf, "<f2").tobytes()),
    ],
)
def test_damaged_targets_are_refused(tmp_path, name: str, content: bytes) -> None:
    write_teacher_cache(tmp_path, "float16", hidden="float16")
    described = manifest.load(tmp_path)
    codec = cache_input.open_codec(tmp_path, described)
    example = next(read_examples(tmp_path / SHARD, described))
    with pytest.raises(ValueError, match="expected"):
        TeacherTargets.from_features(
            {**example.features, name: content}, codec, described.teacher_info
        )


def test_a_column_holds_the_record_of_each_number() -> None:
    feature = records.MASKED_EXAMPLE_FEATURES[3]
    column = arrays.Column.decode(
        feature, [np.array(row, "<u2").tobytes() for row in ([3, 7], [], [5])], 100
    )
    assert (column.values.tolist(), column.counts.tolist()) == ([3, 7, 5], [2, 0, 1])
    assert (column.starts.tolist(), column.owners.tolist()) == ([0, 2, 2], [0, 0, 2])
    with pytest.raises(ValueError, match=r"masked_lm_positions: expected numbers of 2 bytes"):
        arrays.decode(feature, b"123", 100)
