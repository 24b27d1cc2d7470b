"""What a manifest from anywhere may not say: sizes without end, names that lead elsewhere."""

import json
import pathlib
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.storage import manifest as manifests
from tests.fuzz.storage_readers import SHARD, write_examples, write_teacher_cache, write_windows

_SHARD = {"file": SHARD, "num_examples": 1, "bytes": 1, "sha256": "0" * 64}


def _refusal(folder: pathlib.Path, **changes: Any) -> str:
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(value))
    with pytest.raises(InputError) as error:
        manifests.load(folder)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 10**18}, "max_seq_length: expected a count of at most 65536"),
        ({"max_predictions_per_seq": 2**31}, "max_predictions_per_seq: expected a count of at"),
        ({"dupe_factor": 10**30}, "dupe_factor: expected a count of at most"),
        ({"seed": -1}, "seed: expected a count, received -1"),
        ({"vocab": {"size": 2**40, "sha256": "0" * 64}}, "size: expected a count of at most"),
        ({"vocab": {"size": 0, "sha256": "0" * 64}}, "size: expected a count, received 0"),
        ({"vocab": {"size": 9, "sha256": 3}}, "vocab: expected a SHA-256, received 3"),
        ({"vocab": {"size": 9, "two\nlines": 3}}, "missing or misshapen field vocab: expected"),
        ({"vocab": []}, "vocab: expected an object, received []"),
        ({"special_ids": {"mask": 99}}, "mask: expected a count of at most 17, received 99"),
        ({"special_ids": {"two\nlines": None}}, r"'two\nlines': expected a count, received None"),
        ({"flags": {"segments": "\ud800"}}, "expected text, received half a letter"),
        ({"statistics": [["a", 1]]}, "statistics: expected an object"),
        ({"tokenizer_files": "vocab.txt"}, "tokenizer_files: expected a list"),
        # Each of these is a plain name, and another file of the directory it is copied to.
        ({"tokenizer_files": ["manifest.json"]}, "expected a plain file name"),
        ({"tokenizer_files": ["request.json"]}, "expected a plain file name"),
        ({"tokenizer_files": ["model.safetensors"]}, "expected a plain file name"),
        ({"tokenizer_files": [SHARD]}, "expected a plain file name"),
        ({"tokenizer_files": ["x" * 300 + ".model"]}, "expected a plain file name"),
        ({"splits": {"other": []}}, "expected splits train and eval, received 'other'"),
        ({"splits": {"eval": [_SHARD]}}, f"expected a shard of the split eval, received {SHARD}"),
        ({"splits": {"train": [_SHARD, _SHARD]}}, "expected each shard once"),
        ({"splits": {"train": [{**_SHARD, "bytes": 2**70}]}}, "bytes of train-"),
        ({"splits": {"train": [{**_SHARD, "two\nlines": 1}]}}, "expected a shard's description"),
        (
            {"splits": {"train": [{**_SHARD, "file": SHARD.replace("0", "٠")}]}},
            "expected the name of a shard",
        ),
    ],
)
def test_values_of_every_manifest(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    write_examples(tmp_path)
    assert _refusal(tmp_path, **changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation_factor": 0}, "truncation_factor: expected a count, received 0"),
        ({"truncation_factor": 10**12}, "truncation_factor: expected a count of at most"),
        ({"truncation_factor": 19}, "truncation_factor: expected a count of at most 18, rec"),
        ({"temperatures": [0.0]}, "temperatures: expected numbers above 0, received [0.0]"),
        ({"temperatures": [float("nan")]}, "temperatures: expected numbers above 0"),
        ({"temperatures": []}, "temperatures: expected ascending numbers from 1, received []"),
        ({"temperatures": [2.0]}, "temperatures: expected ascending numbers from 1, received [2"),
        ({"temperatures": [1, 3, 2]}, "temperatures: expected ascending numbers from 1, rec"),
        ({"temperatures": [1, 2, 2]}, "temperatures: expected ascending numbers from 1, rec"),
        ({"temperatures": list(range(1, 66))}, "temperatures: expected a list, received [1, 2"),
        ({"temperatures": 1}, "temperatures: expected a list, received 1"),
        ({"teacher": [["sha256", "0" * 64]]}, "teacher: expected an object"),
        ({"hidden_groups": [3]}, "hidden_groups: expected words, received 3"),
        ({"hidden_size": 10**12}, "hidden_size: expected a count of at most"),
        # Of two groups.
        ({"hidden_size": 2**19 + 1}, "hidden_size: expected a count of at most 524288, received"),
        ({"truncation_mass": "x"}, "missing or misshapen field"),
    ],
)
def test_values_of_a_teacher_cache(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    write_teacher_cache(tmp_path, "uint8", hidden="int8")
    assert _refusal(tmp_path, **changes).startswith(message)


@pytest.mark.parametrize(
    ("file", "received"), [("x.npy", "'x.npy'"), ("../x.npy", "'../x.npy'"), (3, "3")]
)
def test_another_name_of_token_counts(tmp_path: pathlib.Path, file: Any, received: str) -> None:
    """What reads them takes the file of the one name."""
    write_windows(tmp_path)
    counts = {"file": file, "bytes": 1, "sha256": "0" * 64}
    message = _refusal(tmp_path, token_counts=counts)
    assert message == f"token_counts: expected the file token_counts.npy, received {received}"


def test_endless_nesting_and_endless_numbers(tmp_path: pathlib.Path) -> None:
    write_examples(tmp_path)
    path = tmp_path / "manifest.json"
    right = path.read_text()
    for wrong in ("[" * 500 + "]" * 500, "9" * 5000, "[" * 100_000):
        path.write_text(right.replace('"documents": 3', f'"documents": {wrong}'))
        with pytest.raises(InputError, match=f"^{path}: not JSON .expected"):
            manifests.load(tmp_path)
