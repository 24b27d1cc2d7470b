"""Real inputs that exports are compared on: lines of a file, or a cache's eval examples."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from data_specs import records
from data_specs.tasks import CLASSIFICATION
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL
from pipeline.storage.records import MaskedExample, Window
from pipeline.tokenizers.tokens import Tokenizer
from tools.finetuning.kinds import build_features
from tools.finetuning.task_files import TaskExample

# One token of so many of a line is masked, as a model seldom errs on tokens that it sees.
_MASK_STEP = 7
# The first of them.
_MASK_START = 3

Arrays = dict[str, np.ndarray]
# Computes a batch: arrays by the names of a program's inputs to arrays by those of its outputs.
Run = Callable[[Mapping[str, np.ndarray]], Arrays]


def example_batch(input_ids: np.ndarray, first_segment: int | None = None) -> Arrays:
    """Returns one example, whose first segment may not be its only one, as a batch.

    The arrays are int32 [1, L] by BERT's names, without padding.
    """
    ids = np.asarray(input_ids, np.int32)[None]
    segments = np.zeros_like(ids)
    if first_segment is not None:
        segments[:, first_segment:] = 1
    mask = np.ones_like(ids)
    return {records.INPUT_IDS: ids, records.INPUT_MASK: mask, records.SEGMENT_IDS: segments}


@dataclasses.dataclass(frozen=True)
class Example:
    """One input.

    Attributes:
        batch: int32 [1, L] by BERT's names.
        text: the line that it was made of, of which nothing is masked; None for an
            example of a cache and for a pair.
    """

    batch: Arrays
    text: str | None = None

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.batch[records.INPUT_IDS].shape[1]


def encode(tokenizer: Tokenizer, text: str, max_seq_length: int) -> np.ndarray:
    """Returns the ids of a text, cut to a length, between [CLS] and [SEP]: int32 [L]."""
    ids = tokenizer.tokenize(text).ids[: max_seq_length - 2]
    special = tokenizer.special_ids
    return np.concatenate([[special["cls"]], ids, [special["sep"]]]).astype(np.int32)


def mask_some(ids: np.ndarray, mask_id: int) -> np.ndarray:
    """Returns the ids of a text between [CLS] and [SEP] with every seventh token masked.

    Example: of 10 tokens the third and the tenth.
    """
    masked = ids.copy()
    masked[_MASK_START:-1:_MASK_STEP] = mask_id
    return masked


def read_lines(
    path: Location, tokenizer: Tokenizer, *, count: int, max_seq_length: int, masked: bool = True
) -> list[Example]:
    """Returns the first lines of a text file that have a token, at most `count`.

    They are cut to `max_seq_length` tokens, every seventh of which is `masked`.

    Raises:
        InputError: no such file, not UTF-8, or no line with a token.
    """
    mask_id, examples = tokenizer.special_ids["mask"], []
    for line in _lines(path):
        ids = encode(tokenizer, line, max_seq_length)
        if len(ids) > 2:
            batch = example_batch(mask_some(ids, mask_id) if masked else ids)
            examples.append(Example(batch, line))
        if len(examples) == count:
            break
    if not examples:
        raise InputError(path, "lines of text", "none")
    return examples


def read_pairs(
    path: Location, tokenizer: Tokenizer, *, count: int, max_seq_length: int, double_separator: bool
) -> list[Example]:
    """Returns the first lines of a text file that have a token, two by two, as a model reads pairs.

    Example: the lines a, b, c, d and e become a with b and c with d.

    There are at most `count` pairs, cut to `max_seq_length` tokens, at least 5. For
    `double_separator` see `kinds.build_features`.

    Raises:
        InputError: no such file, not UTF-8, fewer than two lines with a token, or
            too small a length.
    """
    lines = (line for line in _lines(path) if len(tokenizer.tokenize(line).ids))
    pairs = itertools.islice(zip(lines, lines, strict=False), count)
    found = build_features(
        [TaskExample(str(index), pair) for index, pair in enumerate(pairs)],
        tokenizer,
        kind=CLASSIFICATION,
        max_seq_length=max_seq_length,
        double_separator=double_separator,
    )
    if not found:
        raise InputError(path, "two lines of text or more, for a model of two texts", "fewer")
    return [
        Example(example_batch(one.input_ids, int((one.segment_ids == 0).sum()))) for one in found
    ]


def _lines(path: Location) -> Iterator[str]:
    if not path.is_file():
        raise InputError(path, "a text file", "none")
    try:
        with open(path.mirror(), encoding="utf-8-sig") as file:
            yield from map(str.strip, file)
    except UnicodeDecodeError as error:
        raise InputError(path, "UTF-8 text", error) from error


def read_cache(cache: CacheInput, count: int) -> list[Example]:
    """Returns the first eval examples of a directory of shards, masked as they are there.

    Raises:
        InputError: it has no eval example.
    """
    kind = Window if cache.manifest.kind == records.UNMASKED_WINDOWS else MaskedExample
    examples = []
    for shard in cache.manifest.splits.get(EVAL, ()):
        path = cache.directory / shard.file
        stored = serialization.read_records(path)
        for index, record in enumerate(itertools.islice(stored, count - len(examples))):
            try:
                found = kind.from_record(record, cache.manifest)
            except (KeyError, ValueError) as error:
                raise InputError(path, received=f"broken record {index}: {error}") from error
            first = int(found.segment_lengths[0])
            examples.append(Example(example_batch(found.input_ids, first)))
    if not examples:
        raise InputError(cache.directory, "eval examples", "none")
    return examples
