"""Tests of true tokens, with the labels at masked positions, and of their counts."""

import collections

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import cache_input, serialization
from tests.tools.conftest import read_rows
from tools.vocabulary import cache_tokens


def _example(tokens: list[int], positions: list[int], labels: list[int]) -> dict[str, bytes]:
    return {
        records.INPUT_IDS: np.array(tokens, "<u2").tobytes(),
        records.MASKED_LM_POSITIONS: np.array(positions, "<u2").tobytes(),
        records.MASKED_LM_IDS: np.array(labels, "<u2").tobytes(),
    }


def test_true_tokens_have_labels_at_masked_positions() -> None:
    examples = [_example([2, 4, 9, 4, 3], [1, 3], [7, 8]), _example([2, 3], [], [])]
    examples.append(_example([2, 4, 3], [1], [5]))
    assert cache_tokens.true_tokens(examples, 10).tolist() == [2, 7, 9, 8, 3, 2, 3, 2, 5, 3]
    # The tokens of an unmasked window are its inputs.
    window = {
        records.INPUT_IDS: np.array([2, 4, 3], "<u2").tobytes(),
        records.WORD_STARTS: np.array([1], "<u2").tobytes(),
    }
    assert cache_tokens.true_tokens([window, window], 10).tolist() == [2, 4, 3, 2, 4, 3]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (_example([2, 4, 3], [3], [5]), "expected masked positions within the input"),
        (_example([2, 4, 3], [1], [5, 6]), "expected a label at each masked position"),
        (_example([2, 4, 3], [1], [10]), "expected token ids from 0 to 9, received 2 to 10"),
    ],
)
def test_contradictory_records_are_refused(example: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cache_tokens.true_tokens([_example([2, 3], [], []), example], 10)


@pytest.mark.parametrize("block_records", [7, 4_096])
def test_counts_of_a_cache_equal_a_plain_count(cache_dir, monkeypatch, block_records: int) -> None:
    monkeypatch.setattr(cache_tokens, "_BLOCK_RECORDS", block_records)
    cache = cache_input.open_cache(cache_dir, None)
    expected: collections.Counter[int] = collections.Counter()
    for example in read_rows(cache_dir, "train"):
        tokens, positions, labels = (
            np.frombuffer(example[name], "<u2").tolist()
            for name in (records.INPUT_IDS, records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS)
        )
        for position, label in zip(positions, labels, strict=True):
            tokens[position] = label
        expected.update(tokens)
    counts = cache_tokens.count_tokens(cache)
    assert len(cache.manifest.splits["train"]) == 3
    assert dict(expected) == {i: int(n) for i, n in enumerate(counts) if n}
    # The true tokens never include [MASK].
    assert counts[cache.manifest.special_ids["mask"]] == 0


def test_error_about_a_damaged_record_names_its_shard(cache_dir, monkeypatch) -> None:
    cache = cache_input.open_cache(cache_dir, None)
    broken = [serialization.encode_example(_example([2, 4, 3], [9], [5]))]
    monkeypatch.setattr(serialization, "read_records", lambda path: iter(broken))
    with pytest.raises(InputError, match=r"train-00000-of-00003.tfrecord: a damaged record \(exp"):
        cache_tokens.count_tokens(cache)
