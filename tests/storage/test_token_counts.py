"""Tests of token counts; errors about damaged records and files name them."""

import pathlib

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization, token_counts
from pipeline.storage.records import read_examples


def _write_shard(path: pathlib.Path, *examples: dict[str, bytes]) -> pathlib.Path:
    framed = map(serialization.frame_record, map(serialization.encode_example, examples))
    path.write_bytes(b"".join(framed))
    return path


def test_tokens_of_shards_are_counted(tmp_path: pathlib.Path) -> None:
    ids = np.array([2, 2, 0], "<u2").tobytes()
    labeled = {records.INPUT_IDS: ids, records.MASKED_LM_IDS: np.array([1], "<u2").tobytes()}
    shard = _write_shard(tmp_path / "x.tfrecord", labeled, {records.INPUT_IDS: ids})
    token_counts.ensure_counts(tmp_path, [shard, shard], 4)
    counts = token_counts.sum_counts([tmp_path / "token_counts.npy"], 4)
    # The counts of the shard are 2, 1 and 4, and the shard is counted twice.
    assert counts.tolist() == [4, 2, 8, 0]


def test_labels_of_the_train_split_are_counted(examples_dir: pathlib.Path) -> None:
    manifest = manifests.load(examples_dir)
    expected = np.zeros(manifest.vocab.size, np.int64)
    for shard in manifest.splits["train"]:
        for example in read_examples(examples_dir / shard.file, manifest):
            np.add.at(expected, example.masked_lm_ids, 1)
    counts = token_counts.count_labels(examples_dir, manifest)
    np.testing.assert_array_equal(counts, expected)


def test_all_maskable_tokens_of_windows_are_counted(windows_dir: pathlib.Path) -> None:
    manifest = manifests.load(windows_dir)
    expected = token_counts.load_counts(windows_dir, manifest).copy()
    expected[list(manifest.special_ids.values())] = 0
    counts = token_counts.count_labels(windows_dir, manifest)
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() > 0


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"other": b""}, "'input_ids'"),
        ({records.INPUT_IDS: b"123"}, "input_ids: expected numbers of 2 bytes"),
        (
            {records.INPUT_IDS: b"\xff\xff"},
            "expected token ids from 0 to 3, received 65535 to 65535",
        ),
    ],
)
def test_error_about_a_damaged_record_names_the_shard(
    tmp_path: pathlib.Path, features: dict[str, bytes], message: str
) -> None:
    shard = _write_shard(tmp_path / "x.tfrecord", features)
    with pytest.raises(InputError, match=f"^{shard}: a damaged record .{message}"):
        token_counts.ensure_counts(tmp_path, [shard], 4)


def test_ids_beyond_the_vocabulary_are_refused_before_counting() -> None:
    ids = np.array([2**31 - 1], "<i4").tobytes()
    with pytest.raises(ValueError, match="expected token ids from 0 to 99999"):
        token_counts.count_tokens([serialization.encode_example({records.INPUT_IDS: ids})], 100_000)


@pytest.mark.parametrize(
    "header",
    [
        b"{(",
        b"-" * 4000 + b"1",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (" + b"9" * 3000 + b",)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
        b"{'descr': [], 'fortran_order': False, 'shape': (4,)}",
        b"\xff\x00\n",
        b"__import__('os').abort()",
    ],
)
def test_error_about_a_damaged_header_names_the_file(tmp_path: pathlib.Path, header: bytes) -> None:
    path = tmp_path / "token_counts.npy"
    length = len(header).to_bytes(2, "little")
    path.write_bytes(b"\x93NUMPY\x01\x00" + length + header + bytes(32))
    with pytest.raises(InputError, match=f"^{path}: .*") as error:
        token_counts.sum_counts([path], 4)
    assert len(str(error.value).splitlines()) == 1
