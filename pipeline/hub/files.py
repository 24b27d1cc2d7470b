"""Selects the files of a hub's repository that a model or a tokenizer needs."""

from collections.abc import Collection

from pipeline.base import hub_id
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.hub.client import Snapshot
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import FORMATS
from pipeline.models.formats.model_directory import HF_CONFIG
from pipeline.models.weight_names import HF
from pipeline.tokenizers import loading

_INDEX_SUFFIX = ".index.json"
# Suffixes of weight files of all common libraries.
_WEIGHT_SUFFIXES = (
    *(".bin", ".ckpt", ".gguf", ".h5", ".index", ".msgpack", ".onnx", ".ot", ".pt", ".pth"),
    *(".safetensors", ".tflite"),
)
_MAX_SHOWN = 5


class MissingFilesError(InputError):
    """A repository lacks files that a model or a tokenizer needs."""


def needed_files(snapshot: Snapshot, files: str) -> list[str]:
    """Returns the names of the files to download.

    Args:
        snapshot: the snapshot of the repository.
        files: `hub_id.MODEL` or `hub_id.TOKENIZER`.

    Raises:
        MissingFilesError: the repository has no such files.
        InputError: the family of the model is unknown, or an index of weights is invalid.
    """
    # The preferred file is downloaded last. If the download is killed before it, the cache then
    # has no file that a later run would read instead.
    tokenizer = [name for name in reversed(loading.READ_FILES) if name in snapshot.names]
    if files == hub_id.TOKENIZER:
        if not snapshot.names & set(loading.FILE_NAMES):
            raise _missing(snapshot, loading.FILE_NAMES, "none of them")
        return tokenizer
    if HF_CONFIG not in snapshot.names:
        raise _missing(snapshot, (HF_CONFIG,), _describe_weights(snapshot.names))
    # An invalid configuration is reported before large files are downloaded.
    EncoderConfig.from_json(snapshot.fetch(HF_CONFIG))
    return [*tokenizer, *_weight_files(snapshot)]


def _weight_files(snapshot: Snapshot) -> list[str]:
    """Returns the files of the weights, in the first known format that a repository has."""
    expected = [name for kind in FORMATS.values() if kind.layout == HF for name in kind.file_names]
    for name in expected:
        if name in snapshot.names:
            shards = _shards(snapshot, name) if name.endswith(_INDEX_SUFFIX) else []
            return [name, *shards]
    raise _missing(snapshot, expected, _describe_weights(snapshot.names))


def _describe_weights(names: Collection[str]) -> str:
    """Returns a list of the weight files in other formats, for an error."""
    weights = sorted(name for name in names if name.endswith(_WEIGHT_SUFFIXES))
    num_hidden = len(weights) - _MAX_SHOWN
    listed = ", ".join(map(format_value, weights[:_MAX_SHOWN]))
    if not weights:
        return "no weights"
    return f"only {listed}{f' and {num_hidden} more' if num_hidden > 0 else ''}"


def _shards(snapshot: Snapshot, index: str) -> list[str]:
    """Returns the files that an index names. They must be in the index's folder."""
    path = snapshot.fetch(index)
    weight_map = path.read_json().get("weight_map")
    if not isinstance(weight_map, dict):
        received = format_value(weight_map)
        raise InputError(f"{path}: weight_map", "an object of file names", received)
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if "/" in name or "\\" in name:
            raise InputError(f"{path}: weight_map", "files in the same folder", format_value(name))
        if name not in snapshot.names:
            raise MissingFilesError(
                snapshot.model, f"the shard {format_value(name)} of {index}", "none"
            )
    return names


def _missing(snapshot: Snapshot, names: Collection[str], received: str) -> MissingFilesError:
    hint = "choose another model or revision, or convert the model and name its directory"
    return MissingFilesError(snapshot.model, " or ".join(names), received, hint)
