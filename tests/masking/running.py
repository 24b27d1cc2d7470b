"""Helpers that make and read directories of masked examples and of unmasked windows."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.masking.document_masker import DocumentMasker, Passage
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import manifest, serialization


def make(config, folder: pathlib.Path, **changes) -> pathlib.Path:
    """Makes a directory with some changes of a configuration, and returns it."""
    create_masked_examples(dataclasses.replace(config, output_dir=str(folder), **changes))
    return folder


def passage(text: str, key: bytes, *, copies: int = 1, group: int = 0) -> Passage:
    """Returns a passage of Chinese text without a document."""
    return Passage(text, key, "jieba", copies, group, document=0)


def examples(
    masker: DocumentMasker, passages: Iterable[Passage]
) -> Iterator[tuple[Passage, bytes, bytes]]:
    """Yields the passage, the id and the record of each example of passages."""
    for batch in masker.examples(passages):
        rows = zip(batch.owners.tolist(), batch.contents, strict=True)
        for row, (owner, record) in enumerate(rows):
            yield batch.passages[owner], batch.example_ids[16 * row : 16 * row + 16], record


def counts(masker: DocumentMasker, passages: Sequence[Passage]) -> dict[str, list[int]]:
    """Returns the counts of passages by their names; the groups of the passages are distinct."""
    rows = {passage.group: row for row, passage in enumerate(passages)}
    totals: dict[str, list[int]] = {}
    for batch in masker.examples(passages):
        for name, numbers in batch.counts.items():
            total = totals.setdefault(name, [0] * len(rows))
            for passage, number in zip(batch.passages, numbers.tolist(), strict=True):
                total[rows[passage.group]] += number
    return totals


def read(folder: pathlib.Path, split: str) -> list[dict[str, np.ndarray]]:
    """Returns the features of a split as arrays, after checking that they are as declared."""
    loaded = manifest.load(folder)
    types = {
        feature.name: feature.numpy_dtype(loaded.vocab.size)
        for feature in records.FEATURES[loaded.kind]
    }
    examples = [
        serialization.decode_example(record)
        for shard in loaded.splits[split]
        for record in serialization.read_records(folder / shard.file)
    ]
    assert all(example.keys() == types.keys() for example in examples)
    return [
        {name: np.frombuffer(value, types[name]) for name, value in example.items()}
        for example in examples
    ]


def restored(example: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the tokens of a masked example as they were before masking."""
    ids = example[records.INPUT_IDS].copy()
    ids[example[records.MASKED_LM_POSITIONS]] = example[records.MASKED_LM_IDS]
    return tuple(ids.tolist())
