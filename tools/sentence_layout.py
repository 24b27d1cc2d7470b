"""The files of `sentence-transformers` directories: pooling and normalization of a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from data_specs.records import POOLINGS
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.storage.manifest import RUN_CONFIG_FILE

MODULES_FILE = "modules.json"
_POOLING_FOLDER = "1_Pooling"
_CONFIG_FILE = "config.json"
_TEXT_FILE = "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_TOKENIZER_FILE = "tokenizer_config.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
_TYPE = "sentence_transformers.models."
# The keys of a pooling's configuration, by our names; newer files have one key, `pooling_mode`.
_MODE_KEYS: Mapping[str, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
}
_MODE_KEY = "pooling_mode"
# Keys of other pooling modes. They are written as off, for readers of any version.
_OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")


@dataclasses.dataclass(frozen=True)
class SentenceLayout:
    """The settings that turn a text into a vector.

    Attributes:
        pooling: pooling of the last hidden states, one of `data_specs.records.POOLINGS`.
        normalize: whether vectors have length 1.
        max_seq_length: maximum number of tokens of a text, if the model has enough positions;
            None for the model's number of positions.
        lower_case: whether texts are lower-cased before tokenization.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_seq_length: int | float | None = None
    lower_case: bool = False


@dataclasses.dataclass(frozen=True)
class PoolingSettings(Settings):
    """The settings of a vector."""

    pooling: str | None = setting(
        None,
        "Pooling of the last hidden states: cls for the first token, mean for the mean over all "
        "tokens. By default, the pooling in the model's sentence-transformers files, or that of "
        "its training, or mean.",
        choices=POOLINGS,
    )
    normalize: bool | None = setting(
        None,
        "Whether vectors have length 1. By default, the value in the model's "
        "sentence-transformers files, or false.",
    )


class _Module(msgspec.Struct):
    type: str
    path: str = ""


class _Texts(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Tokenizer(msgspec.Struct):
    # Some files write 1e30 for no limit.
    model_max_length: int | float | None = None


class _Prompts(msgspec.Struct):
    default_prompt_name: str | None = None


class _RunConfig(msgspec.Struct):
    embedding_pooling: str | None = None


def choose_layout(directory: Location, settings: PoolingSettings) -> SentenceLayout:
    """Returns the layout of a model's vectors, from the settings or from its directory.

    Raises:
        InputError: its files require something unsupported, and the settings do not replace it.
    """
    pooling, normalize = settings.pooling, settings.normalize
    if pooling is not None and normalize is not None:
        return SentenceLayout(pooling, normalize)
    layout = read_layout(directory) or SentenceLayout(_trained_pooling(directory) or "mean")
    return dataclasses.replace(
        layout,
        pooling=pooling or layout.pooling,
        normalize=layout.normalize if normalize is None else normalize,
    )


def _trained_pooling(directory: Location) -> str | None:
    """Returns the pooling in the run configuration of a student; None if it has none."""
    path = directory / RUN_CONFIG_FILE
    if not path.is_file():
        return None
    pooling = json_text.convert(path.read_json(), _RunConfig, path).embedding_pooling
    return pooling if pooling in POOLINGS else None


def read_layout(directory: Location) -> SentenceLayout | None:
    """Returns the layout in a model directory's `sentence-transformers` files.

    Returns:
        the layout; None if the directory has no such files.

    Raises:
        InputError: a file is malformed, or has unsupported modules, pooling or prompts.
    """
    path = directory / MODULES_FILE
    if not path.is_file():
        return None
    hint = "set `pooling` and `normalize` for vectors of the encoder alone"
    modules = json_text.convert(path.read_json_value(), list[_Module], path)
    names = tuple(module.type.rpartition(".")[2] for module in modules)
    if names not in (_MODULES[:2], _MODULES) or modules[0].path:
        received = ", ".join(format_value(module.type) for module in modules) or "none"
        expected = f"{', '.join(_MODULES[:2])} and perhaps {_MODULES[2]}, the first in this folder"
        raise InputError(path, expected, received, hint)
    prompts = _read(directory / _PROMPTS_FILE, _Prompts)
    if prompts.default_prompt_name is not None:
        received = format_value(prompts.default_prompt_name)
        raise InputError(directory / _PROMPTS_FILE, "no default prompt", received, hint)
    texts = _read(directory / _TEXT_FILE, _Texts)
    # Newer versions write the length only to the tokenizer's file.
    length = texts.max_seq_length or _read(directory / _TOKENIZER_FILE, _Tokenizer).model_max_length
    pooling = _read_pooling(directory, modules[1].path)
    return SentenceLayout(pooling, names == _MODULES, length, texts.do_lower_case)


def _read(path: Location, kind: type[Any]) -> Any:
    """Reads a file; a missing file has default values."""
    return json_text.convert(path.read_json(), kind, path) if path.is_file() else kind()


def _read_pooling(directory: Location, folder: str) -> str:
    if folder in ("", ".", "..") or "/" in folder or not folder.isprintable():
        raise InputError(
            directory / MODULES_FILE, "a folder of the same directory", format_value(folder)
        )
    path = directory / folder / _CONFIG_FILE
    settings = path.read_json()
    names = {key: name for name, key in _MODE_KEYS.items()}
    modes = [
        names.get(key, key)
        for key, value in settings.items()
        if key.startswith(f"{_MODE_KEY}_") and value is True
    ]
    if (mode := settings.get(_MODE_KEY)) is not None:
        modes = mode if isinstance(mode, list) else [mode]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        received = ", ".join(map(format_value, modes)) or "none"
        hint = "set `pooling` and `normalize` for other vectors of the encoder"
        raise InputError(path, f"one pooling of {', '.join(POOLINGS)}", received, hint)
    return modes[0]


def write_layout(directory: Location, layout: SentenceLayout, hidden_size: int) -> None:
    """Writes the `sentence-transformers` files of a model, the list of modules last."""
    pooling: dict[str, Any] = {"word_embedding_dimension": hidden_size}
    pooling |= {key: name == layout.pooling for name, key in _MODE_KEYS.items()}
    pooling |= dict.fromkeys(_OTHER_MODES, False)
    ((directory / _POOLING_FOLDER).make_directory() / _CONFIG_FILE).write_json(pooling)
    texts = {"max_seq_length": layout.max_seq_length, "do_lower_case": layout.lower_case}
    (directory / _TEXT_FILE).write_json(texts)
    folders = ("", _POOLING_FOLDER, "2_Normalize")[: 3 if layout.normalize else 2]
    modules = [
        {"idx": index, "name": str(index), "path": folder, "type": f"{_TYPE}{name}"}
        for index, (folder, name) in enumerate(zip(folders, _MODULES, strict=False))
    ]
    (directory / MODULES_FILE).write_json(modules)
