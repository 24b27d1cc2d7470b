"""How often each token stands in the text that masked examples were made of."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import tqdm

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import TRAIN

# Records counted at once: some megabytes.
_CHUNK = 4_096


def count_tokens(cache: CacheInput) -> np.ndarray:
    """Counts the true tokens of the train split, with the masked ones put back.

    A token counts as often as examples hold it: of windows that overlap, and of
    each differently masked copy.

    Args:
        cache: masked examples, a teacher cache or unmasked windows.

    Returns:
        int64 [V].

    Raises:
        InputError: a shard is damaged.
    """
    vocab_size = cache.manifest.vocab.size
    counts = np.zeros(vocab_size, np.int64)
    shards = cache.manifest.splits.get(TRAIN, ())
    total = sum(shard.num_examples for shard in shards)
    with tqdm.tqdm(total=total, unit=" examples", unit_scale=True, desc="count") as bar:
        for shard in shards:
            path = cache.directory / shard.file
            for chunk in _chunks(serialization.read_records(path)):
                try:
                    examples = [serialization.decode_example(record) for record in chunk]
                    tokens = true_tokens(examples, vocab_size)
                    counts += np.bincount(tokens, minlength=vocab_size)
                except (KeyError, ValueError) as error:
                    raise InputError(path, received=f"a damaged record ({error})") from error
                bar.update(len(chunk))
    return counts


def _chunks(stream: Iterator[bytes]) -> Iterator[tuple[bytes, ...]]:
    while chunk := tuple(itertools.islice(stream, _CHUNK)):
        yield chunk


def true_tokens(examples: list[Mapping[str, bytes]], vocab_size: int) -> np.ndarray:
    """Returns the tokens of examples before masking, one example after the other.

    Args:
        examples: the features of each; those of unmasked windows are true already.
        vocab_size: V.

    Returns:
        int [tokens of all examples].

    Raises:
        KeyError: a feature is missing.
        ValueError: positions or ids are out of range, or features contradict each other.

    Example:
        `input_ids` 2 4 9 3 with `masked_lm_positions` 1 and `masked_lm_ids` 7 are the
        true tokens 2 7 9 3.
    """
    dtype = records.id_dtype(vocab_size)

    def joined(name: str, kind: str | np.dtype) -> np.ndarray:
        return np.frombuffer(b"".join(example[name] for example in examples), kind)

    def counts(name: str, kind: str | np.dtype) -> np.ndarray:
        return np.array([len(example[name]) for example in examples]) // np.dtype(kind).itemsize

    tokens = joined(records.INPUT_IDS, dtype).copy()
    if examples and records.WORD_STARTS in examples[0]:
        return _in_range(tokens, vocab_size)
    labels = joined(records.MASKED_LM_IDS, dtype)
    lengths = counts(records.INPUT_IDS, dtype)
    masked = counts(records.MASKED_LM_POSITIONS, "<u2")
    if not np.array_equal(masked, counts(records.MASKED_LM_IDS, dtype)):
        raise ValueError("expected a label at each masked position")
    positions = joined(records.MASKED_LM_POSITIONS, "<u2").astype(np.int64)
    if (positions >= np.repeat(lengths, masked)).any():
        raise ValueError("expected masked positions within the input")
    tokens[np.repeat(np.cumsum(lengths) - lengths, masked) + positions] = labels
    return _in_range(tokens, vocab_size)


def _in_range(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"expected ids of {vocab_size} tokens, received others")
    return tokens
