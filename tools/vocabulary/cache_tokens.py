"""Counts of the true tokens in the text of masked examples."""

import itertools
from collections.abc import Mapping

import numpy as np
import tqdm

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import serialization
from pipeline.storage.arrays import Column
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import TRAIN

# Records that are counted together, some megabytes.
_BLOCK_RECORDS = 4_096


def count_tokens(cache: CacheInput) -> np.ndarray:
    """Counts the true tokens of the train split, as they were before masking.

    Each example counts in full, also overlapping windows and differently masked copies.

    Returns:
        int64 [V].
    """
    vocab_size = cache.manifest.vocab.size
    counts = np.zeros(vocab_size, np.int64)
    shards = cache.manifest.splits.get(TRAIN, ())
    total = sum(shard.num_examples for shard in shards)
    with tqdm.tqdm(total=total, unit=" examples", unit_scale=True, desc="count") as bar:
        for shard in shards:
            path = cache.directory / shard.file
            serialized = serialization.read_records(path)
            while block := tuple(itertools.islice(serialized, _BLOCK_RECORDS)):
                try:
                    examples = [serialization.decode_example(record) for record in block]
                    tokens = true_tokens(examples, vocab_size)
                    counts += np.bincount(tokens, minlength=vocab_size)
                except (KeyError, ValueError) as error:
                    received = f"a damaged record ({error})"
                    hint = "run offline_distill verify_cache"
                    raise InputError(path, received=received, hint=hint) from error
                bar.update(len(block))
    return counts


def true_tokens(examples: list[Mapping[str, bytes]], vocab_size: int) -> np.ndarray:
    """Returns the tokens of examples before masking, concatenated.

    Args:
        examples: the features of each masked example or unmasked window.
        vocab_size: V.

    Returns:
        int [tokens of all examples].

    Raises:
        KeyError: a feature is missing.
        ValueError: positions or ids are out of range, or features contradict each other.

    Example:
        for `input_ids` 2 4 9 3, `masked_lm_positions` 1 and `masked_lm_ids` 7, the true tokens
        are 2 7 9 3.
    """
    is_masked = not (examples and records.WORD_STARTS in examples[0])
    masked = (records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS) if is_masked else ()
    columns = {
        feature.name: Column.decode(
            feature, [example[feature.name] for example in examples], vocab_size
        )
        for feature in records.MASKED_EXAMPLE_FEATURES
        if feature.name in (records.INPUT_IDS, *masked)
    }
    ids = columns[records.INPUT_IDS]
    tokens = ids.values.copy()
    if is_masked:
        labels = columns[records.MASKED_LM_IDS]
        positions = columns[records.MASKED_LM_POSITIONS]
        if not np.array_equal(positions.counts, labels.counts):
            raise ValueError("expected a label at each masked position")
        if (positions.values >= ids.counts[positions.owners]).any():
            raise ValueError("expected masked positions within the input")
        tokens[ids.starts[positions.owners] + positions.values] = labels.values
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(
            f"expected token ids from 0 to {vocab_size - 1}, received {tokens.min()} to "
            f"{tokens.max()}"
        )
    return tokens
