"""What the values of a manifest may be: checked before any of them is used.

A manifest may come from anywhere. A number in it becomes the size of an array, a name
the path of a file that is copied.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_specs.records import FEATURES, TEACHER_CACHE
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import MAX_DIGITS, shown
from pipeline.storage.shard_info import SHARD_FILE, TOKEN_COUNTS_FILE
from pipeline.storage.teacher_info import SHA256
from pipeline.tokenizers.vocabulary import MAX_VOCAB_SIZE

# Positions are uint16 in a record.
MAX_LENGTH = 2**16
# No array has more items.
_MAX_COUNT = 2**63 - 1
# Of a position, of all groups together.
_MAX_HIDDEN_SIZE = 2**20
_MAX_GROUPS = 2**10
_MAX_TEMPERATURES = 64

# What may be copied from one directory into another, and is nothing else there.
_TOKENIZER_FILE = re.compile(r"vocab\.txt|tokenizer(_config)?\.json|[A-Za-z0-9_.\-]{1,64}\.model")
# The largest counts, by name.
_COUNTS: Mapping[str, int] = {
    "max_seq_length": MAX_LENGTH,
    "max_predictions_per_seq": MAX_LENGTH,
    "dupe_factor": _MAX_COUNT,
    # Any that JSON may hold: it is hashed.
    "seed": 10**MAX_DIGITS,
}
_SPLITS = ("train", "eval")


def expect_manifest(value: Mapping[str, Any], path: str) -> None:
    """Checks what becomes a size, a name or an id.

    Args:
        value: the object in the file.
        path: of the file, for messages.

    Raises:
        InputError: a value is missing, or is not what it may be.
    """
    if _field(value, "kind", path) not in tuple(FEATURES):
        raise InputError(path, f"kind in {sorted(FEATURES)}", shown(value["kind"]))
    for name, most in _COUNTS.items():
        _expect_count(value, name, path, most=most)
    _expect_vocab(value, path)
    for name in ("flags", "statistics"):
        if name in value or name == "flags":
            _expect_object(value, name, path)
    for name in _expect_list(value, "tokenizer_files", path):
        if not isinstance(name, str) or not _TOKENIZER_FILE.fullmatch(name):
            raise InputError(
                path,
                "a plain file name",
                shown(name),
                hint="a tokenizer's are vocab.txt, tokenizer.json, tokenizer_config.json and "
                "*.model",
            )
    _expect_file_name(value, path)
    _expect_splits(value, path)
    _expect_text(value, path)
    if value["kind"] == TEACHER_CACHE:
        _expect_teacher_values(value, path)


def _expect_vocab(value: Mapping[str, Any], path: str) -> None:
    vocab = _expect_object(value, "vocab", path)
    if set(vocab) != {"size", "sha256"}:
        raise InputError(
            path,
            received="missing or misshapen field vocab: expected size and sha256, received "
            f"{shown(sorted(vocab))}",
        )
    _expect_count(vocab, "size", path, least=1, most=MAX_VOCAB_SIZE)
    _expect_sha256(vocab, path)
    special_ids = _expect_object(value, "special_ids", path)
    for name in special_ids:
        _expect_count(special_ids, name, path, most=vocab["size"] - 1)


def _expect_file_name(value: Mapping[str, Any], path: str) -> None:
    counts = value.get("token_counts")
    # What reads it knows no other name.
    if isinstance(counts, dict) and counts.get("file") != TOKEN_COUNTS_FILE:
        raise InputError(
            path,
            received=f"token_counts: expected the file {TOKEN_COUNTS_FILE}, received "
            f"{shown(counts.get('file'))}",
        )


def _expect_splits(value: Mapping[str, Any], path: str) -> None:
    seen: set[str] = set()
    for split, shards in _expect_object(value, "splits", path).items():
        if split not in _SPLITS:
            raise InputError(path, "splits train and eval", shown(split))
        for shard in _expect_list({split: shards}, split, path):
            if not isinstance(shard, dict) or not isinstance(shard.get("file"), str):
                raise InputError(path, "a shard's description", shown(shard))
            match = SHARD_FILE.fullmatch(shard["file"])
            if match is not None and match[1] != split:
                raise InputError(path, f"a shard of the split {split}", shard["file"])
            if shard["file"] in seen:
                raise InputError(path, "each shard once", f"{shard['file']} twice")
            seen.add(shard["file"])


def _expect_text(value: Mapping[str, Any], path: str) -> None:
    """JSON can spell halves of letters, which no file can hold."""
    try:
        json_text.dump(value)
    except UnicodeEncodeError as error:
        raise InputError(path, "text", f"half a letter ({error.reason})") from (error)


def _expect_teacher_values(value: Mapping[str, Any], path: str) -> None:
    _expect_count(value, "truncation_factor", path, least=1, most=value["vocab"]["size"])
    for name in ("teacher", "parent"):
        _expect_object(value, name, path)
    temperatures = _expect_list(value, "temperatures", path, most=_MAX_TEMPERATURES)
    if not all(_is_number(one) and one > 0 for one in temperatures):
        raise InputError(
            path, received=f"temperatures: expected numbers above 0, received {shown(temperatures)}"
        )
    if temperatures[:1] != [1] or list(temperatures) != sorted(set(temperatures)):
        raise InputError(
            path,
            received="temperatures: expected ascending numbers from 1, received "
            f"{shown(temperatures)}",
        )
    groups = value.get("hidden_groups")
    # Without groups, no one reads the size.
    if not groups:
        return
    for group in _expect_list(value, "hidden_groups", path, most=_MAX_GROUPS):
        if not isinstance(group, str):
            raise InputError(
                path, received=f"hidden_groups: expected words, received {shown(group)}"
            )
    _expect_count(value, "hidden_size", path, least=1, most=_MAX_HIDDEN_SIZE // len(groups))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _field(value: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in value:
        raise InputError(path, received=f"missing or misshapen field {shown(name)}")
    return value[name]


def _expect_object(value: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    found = _field(value, name, path)
    if not isinstance(found, dict):
        raise InputError(path, received=f"{name}: expected an object, received {shown(found)}")
    return found


def _expect_list(
    value: Mapping[str, Any], name: str, path: str, *, most: int = 2**20
) -> Sequence[Any]:
    found = _field(value, name, path)
    if not isinstance(found, list) or len(found) > most:
        raise InputError(path, received=f"{name}: expected a list, received {shown(found)}")
    return found


def _expect_count(
    value: Mapping[str, Any], name: str, path: str, *, least: int = 0, most: int
) -> None:
    found = _field(value, name, path)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise InputError(path, received=f"{_key(name)}: expected a count, received {shown(found)}")
    if found > most:
        raise InputError(
            path,
            received=f"{_key(name)}: expected a count of at most {most}, received {shown(found)}",
        )


def _key(name: str) -> str:
    """Returns a key as it is where it is a plain word, else as a value is shown."""
    return name if re.fullmatch(r"\w{1,64}", name, re.ASCII) else shown(name)


def _expect_sha256(vocab: Mapping[str, Any], path: str) -> None:
    sha256 = vocab["sha256"]
    if not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        raise InputError(path, received=f"vocab: expected a SHA-256, received {shown(sha256)}")
