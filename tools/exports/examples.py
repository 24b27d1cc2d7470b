"""Real inputs on which exports are compared: lines of a file, or a cache's eval examples."""

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

# Every seventh token of a line is masked, because a model predicts most visible tokens correctly.
_MASK_STEP = 7
# Index of the first masked token.
_MASK_START = 3

Arrays = dict[str, np.ndarray]
# A function that computes a batch. It maps arrays by a program's input names to arrays by its
# output names.
Run = Callable[[Mapping[str, np.ndarray]], Arrays]


def example_batch(input_ids: np.ndarray, first_segment: int | None = None) -> Arrays:
    """Returns one example as a batch: int32 [1, L] arrays by BERT's input names, without padding.

    Args:
        input_ids: int [L].
        first_segment: number of tokens of the first segment; None if there is only one segment.
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
        batch: int32 [1, L] arrays by BERT's input names.
        text: the line from which the example was made, without masks. None for a pair and for an
            example of a cache.
    """

    batch: Arrays
    text: str | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the input, L."""
        return self.batch[records.INPUT_IDS].shape[1]


def encode(tokenizer: Tokenizer, text: str, max_seq_length: int) -> np.ndarray:
    """Returns the ids of a text between [CLS] and [SEP], int32 [L]; L is at most a maximum."""
    ids = tokenizer.tokenize(text).ids[: max_seq_length - 2]
    special = tokenizer.special_ids
    return np.concatenate([[special["cls"]], ids, [special["sep"]]]).astype(np.int32)


def mask_every_seventh(ids: np.ndarray, mask_id: int) -> np.ndarray:
    """Returns the ids of a text between [CLS] and [SEP] with every seventh token masked.

    Example: with 10 tokens, the third and the tenth are masked.
    """
    masked = ids.copy()
    masked[_MASK_START:-1:_MASK_STEP] = mask_id
    return masked


def read_lines(
    path: Location, tokenizer: Tokenizer, *, count: int, max_seq_length: int, masked: bool = True
) -> list[Example]:
    """Returns examples from the first lines of a text file that have a token.

    Args:
        path: the text file.
        tokenizer: the model's tokenizer.
        count: maximum number of examples.
        max_seq_length: maximum length of an example in tokens, with special tokens.
        masked: whether to mask every seventh token.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has no line with a token.
    """
    mask_id, examples = tokenizer.special_ids["mask"], []
    for line in _lines(path):
        ids = encode(tokenizer, line, max_seq_length)
        if len(ids) > 2:
            batch = example_batch(mask_every_seventh(ids, mask_id) if masked else ids)
            examples.append(Example(batch, line))
        if len(examples) == count:
            break
    if not examples:
        raise InputError(path, "lines of text", "none")
    return examples


def read_pairs(
    path: Location, tokenizer: Tokenizer, *, count: int, max_seq_length: int, double_separator: bool
) -> list[Example]:
    """Returns pairs of consecutive lines of a text file; lines without a token are skipped.

    Example: the lines a, b, c, d and e give the pairs (a, b) and (c, d).

    Args:
        path: the text file.
        tokenizer: the model's tokenizer.
        count: maximum number of pairs.
        max_seq_length: maximum length of a pair in tokens, with special tokens; at least 5.
        double_separator: see `kinds.build_features`.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has fewer than two lines with a
            token, or `max_seq_length` is too small.
    """
    lines = (line for line in _lines(path) if len(tokenizer.tokenize(line).ids))
    pairs = itertools.islice(zip(lines, lines, strict=False), count)
    features = build_features(
        [TaskExample(str(index), pair) for index, pair in enumerate(pairs)],
        tokenizer,
        kind=CLASSIFICATION,
        max_seq_length=max_seq_length,
        double_separator=double_separator,
    )
    if not features:
        raise InputError(path, "at least two lines of text, because inputs are pairs", "fewer")
    return [
        Example(example_batch(pair.input_ids, int((pair.segment_ids == 0).sum())))
        for pair in features
    ]


def _lines(path: Location) -> Iterator[str]:
    if not path.is_file():
        raise InputError(path, received="no such file")
    try:
        with open(path.mirror(), encoding="utf-8-sig") as file:
            yield from map(str.strip, file)
    except UnicodeDecodeError as error:
        raise InputError(path, "UTF-8 text", error) from error


def read_cache(cache: CacheInput, count: int) -> list[Example]:
    """Returns the first eval examples of a shard directory, with the masks that are stored.

    Raises:
        InputError: the directory has no eval example.
    """
    kind = Window if cache.manifest.kind == records.UNMASKED_WINDOWS else MaskedExample
    examples = []
    for shard in cache.manifest.splits.get(EVAL, ()):
        path = cache.directory / shard.file
        stored = serialization.read_records(path)
        for index, record in enumerate(itertools.islice(stored, count - len(examples))):
            try:
                example = kind.from_record(record, cache.manifest)
            except (KeyError, ValueError) as error:
                raise InputError(path, received=f"broken record {index}: {error}") from error
            first_segment = int(example.segment_lengths[0])
            examples.append(Example(example_batch(example.input_ids, first_segment)))
    if not examples:
        raise InputError(cache.directory, "eval examples", "none")
    return examples
