"""The file of token counts of a shard directory: `token_counts.npy`, int64 [V].

Directories of unmasked windows have the file, and teacher caches of codecs that give frequent
tokens small numbers. The manifest records its size and checksum. The counts of a corpus are
complete only after all its blocks are read. Therefore each document block writes its counts next
to its spill file, and they are summed later.
"""

import io
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage import arrays, serialization
from pipeline.storage.manifest import TOKEN_COUNTS_FILE, TRAIN, FileInfo, Manifest
from pipeline.storage.records import read_examples

_DTYPE = np.dtype("<i8")
# Number of labels that is enough to estimate their frequencies.
_MAX_LABELS = 1_000_000
_INPUT_IDS = records.MASKED_EXAMPLE_FEATURES[1]


def count_tokens(serialized: Iterable[bytes], vocab_size: int) -> np.ndarray:
    """Returns the counts of the tokens of records, including `[CLS]` and `[SEP]`, int64 [V].

    In masked examples, both the inputs and the true tokens at masked positions are counted.

    Raises:
        KeyError: a record has no `input_ids`.
        ValueError: a record is malformed, or has ids beyond the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    for record in serialized:
        features = serialization.decode_example(record)
        content = features[records.INPUT_IDS] + features.get(records.MASKED_LM_IDS, b"")
        tokens = arrays.decode(_INPUT_IDS, content, vocab_size)
        # Checked before counting, as `bincount` allocates an array as long as the largest id.
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(
                f"expected token ids from 0 to {vocab_size - 1}, received {tokens.min()} to "
                f"{tokens.max()}"
            )
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def write_counts(path: Location, counts: np.ndarray) -> FileInfo:
    """Writes counts, int [V], atomically; returns the file's size and checksum."""
    buffer = io.BytesIO()
    np.save(buffer, counts.astype(_DTYPE), allow_pickle=False)
    path.write_whole(buffer.getvalue())
    return _file_info(path)


def ensure_counts(directory: Location, shards: Iterable[Location], vocab_size: int) -> FileInfo:
    """Writes the file of the token counts of all given shards, unless it exists.

    Returns:
        the file's size and checksum.

    Raises:
        InputError: the existing file is malformed, or a shard is damaged.
    """
    path = directory / TOKEN_COUNTS_FILE
    if path.is_file():
        _read(path, vocab_size)
        return _file_info(path)
    counts = np.zeros(vocab_size, np.int64)
    for shard in shards:
        try:
            counts += count_tokens(serialization.read_records(shard), vocab_size)
        except InputError:
            raise
        except (KeyError, ValueError) as error:
            received, hint = f"a damaged record ({error})", "run offline_distill verify_cache"
            raise InputError(shard, received=received, hint=hint) from error
    return write_counts(path, counts)


def _file_info(path: Location) -> FileInfo:
    return FileInfo(path.name, path.stat().st_size, path.sha256())


def _read(path: Location, vocab_size: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(path, received="this file of token counts is missing")
    size = vocab_size * _DTYPE.itemsize
    try:
        with path.mirrored() as copy, open(copy, "rb") as file:
            shape, dtype = arrays.read_npy_header(file)
            content = file.read(size + 1)
    except ValueError as error:
        raise InputError(path, "an array of counts", f"an unreadable file ({error})") from error
    if (shape, dtype, len(content)) != ((vocab_size,), _DTYPE, size):
        expected = f"the counts of {vocab_size} tokens, {_DTYPE} in {size} bytes"
        received = f"shape {format_value(shape)}, {dtype} in {len(content)} bytes"
        raise InputError(path, expected, received)
    return np.frombuffer(content, _DTYPE)


def sum_counts(paths: Sequence[Location], vocab_size: int) -> np.ndarray:
    """Returns the sum of the counts in several files of `write_counts`, int64 [V].

    Raises:
        InputError: a file is missing or malformed.
    """
    return sum((_read(path, vocab_size) for path in paths), np.zeros(vocab_size, _DTYPE))


def count_labels(directory: Location, manifest: Manifest) -> np.ndarray:
    """Returns the counts of the true tokens at masked positions, int64 [V].

    At most a million positions of the train split are counted. In unmasked windows, all tokens
    that may be masked are counted.

    Raises:
        InputError: a shard is damaged.
    """
    if manifest.kind == records.UNMASKED_WINDOWS:
        counts = load_counts(directory, manifest).copy()
        counts[list(manifest.special_ids.values())] = 0
        return counts
    shards = manifest.splits.get(TRAIN) or manifest.shards
    examples = itertools.chain.from_iterable(
        read_examples(directory / shard.file, manifest) for shard in shards
    )
    labels, total = [np.zeros(0, np.int64)], 0
    for example in examples:
        labels.append(example.masked_lm_ids)
        total += len(example.masked_lm_ids)
        if total >= _MAX_LABELS:
            break
    return np.bincount(np.concatenate(labels), minlength=manifest.vocab.size)


def load_counts(directory: Location, manifest: Manifest) -> np.ndarray:
    """Returns the counts in the file of a directory, int64 [V].

    Raises:
        InputError: the manifest names no such file, or the file is malformed.
    """
    if manifest.token_counts is None:
        expected = f"{records.UNMASKED_WINDOWS} with token counts"
        hint = "prepare the windows again with create_pretraining_data `masking`=dynamic"
        raise InputError(directory, expected, "a manifest without token_counts", hint)
    return _read(directory / manifest.token_counts.file, manifest.vocab.size)
