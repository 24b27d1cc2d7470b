"""Model directories: finding, checking, reading into a model, and writing.

Two layouts are read: Hugging Face's (`config.json` and weights in one of `FORMATS`) and
Google's (`bert_config.json`, `bert_model.ckpt`). Hugging Face's layout is written. Code that a
file holds is never run. Keras and TensorFlow are imported only to build a model, so that a
wrong path is reported at once.
"""

import contextlib
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError, naming_setting
from pipeline.base.location import Location, mirror_all
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import FORMATS
from pipeline.models.formats.hf_files import one_line
from pipeline.models.formats.safetensors_files import HF_WEIGHTS, save_tensors
from pipeline.models.formats.tensor_names import ModelTensors
from pipeline.models.weight_names import (
    HF,
    VOCABULARY_ROWS,
    WeightName,
    check_tensors,
    fold_embeddings,
    folded_table,
    tied_hf_names,
    weight_table,
)

if TYPE_CHECKING:
    import keras

    from pipeline.models.masked_lm import MaskedLM

HF_CONFIG = "config.json"
GOOGLE_CONFIG = "bert_config.json"
GOOGLE_PREFIX = "bert_model.ckpt"
_GOOGLE_FORMAT = "tf1"
_SHOWN_FILES = 6


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model on disk whose files exist; its weights are not yet read.

    Attributes:
        config: the encoder's configuration, without unused rows in `vocab_size`.
        format: the format of its weights, a key of `FORMATS`.
        weight_files: the files that hold the weights; empty for random weights.
        location: the directory, or the prefix of Google's checkpoint; None for random
            weights.
        directory: the directory of the configuration, and usually of the tokenizer.
        unused_rows: the number of rows at the end of the vocabulary's tables that stand for no
            token and are not read. Many tables are padded to a multiple of 64.
    """

    config: EncoderConfig
    format: str
    weight_files: tuple[Location, ...]
    location: Location | None
    directory: Location
    unused_rows: int = 0

    @classmethod
    def from_google(cls, config_file: Location, checkpoint: Location | None) -> "ModelSource":
        """Finds the files of a configuration and a checkpoint's prefix.

        Args:
            config_file: Google's `bert_config.json` (or a `config.json`).
            checkpoint: a prefix such as `…/bert_model.ckpt`, or the name of its `.index`
                file; None for random weights.

        Raises:
            InputError: a file is missing or the configuration is invalid.
        """
        config = EncoderConfig.from_json(config_file)
        files = ()
        if checkpoint is not None:
            if checkpoint.suffix == ".index":
                checkpoint = checkpoint.with_name(checkpoint.name.removesuffix(".index"))
            files = FORMATS[_GOOGLE_FORMAT].find(checkpoint)
        return cls(config, _GOOGLE_FORMAT, files, checkpoint, config_file.parent)

    @property
    def layout(self) -> str:
        """The layout of its weights, `weight_names.HF` or `TF1`."""
        return FORMATS[self.format].layout

    @property
    def has_weights(self) -> bool:
        """Whether it has weights to read; a model without weights starts at random."""
        return self.location is not None

    @functools.cached_property
    def has_head(self) -> bool:
        """Whether the files hold a masked-LM head, or all weights are random."""
        return self.location is None or not self.open_files().missing_head()

    @functools.cached_property
    def is_bare(self) -> bool:
        """Whether the files hold an encoder without any tensor of a masked-LM head."""
        return self.location is not None and self.open_files().is_bare()

    def expect_head(self) -> None:
        """Raises InputError unless the files hold a masked-LM head; random weights pass."""
        if self.location is not None:
            self.open_files().expect_head()

    def print_unused(self) -> None:
        """Prints a line on stderr about tensors that a masked LM does not use, if any."""
        if self.location is None:
            return
        folded = [row.stored(self.layout)[0] for row in self._folded_table()]
        line = self.open_files().describe_unused(folded)
        if line is not None:
            print(line, file=sys.stderr)

    @property
    def stored_config(self) -> EncoderConfig:
        """The configuration in its file, with unused rows in `vocab_size`."""
        return dataclasses.replace(
            self.config, vocab_size=self.config.vocab_size + self.unused_rows
        )

    def with_vocab_size(self, vocab_size: int) -> "ModelSource":
        """Returns the model with only its first `vocab_size` tokens.

        Raises:
            InputError: the padding token is not among them.
            ValueError: the file has fewer tokens.
        """
        unused_rows = self.stored_config.vocab_size - vocab_size
        if unused_rows < 0:
            raise ValueError(f"vocab_size: expected at most {self.stored_config.vocab_size}")
        config = dataclasses.replace(self.config, vocab_size=vocab_size)
        return dataclasses.replace(self, config=config, unused_rows=unused_rows)

    def read_weights(self, table: Sequence[WeightName] | None = None) -> dict[str, np.ndarray]:
        """Reads weights as float32 arrays by our names.

        Args:
            table: the weights to read, for example `encoder_table` for an encoder without a
                head. By default those of a masked LM, whose head must exist.

        Raises:
            InputError: the weights do not match the configuration.
            ValueError: the source has no weights; see `has_weights`.
        """
        if self.location is None:
            raise ValueError("read_weights: expected a source with weights, received one without")
        tensors, layout = self.open_files(), self.layout
        copies = {}
        if table is None:
            tensors.expect_head()
            table, copies = weight_table(self.config), tensors.copies
        folded = self._folded_table()
        table = (*map(self._with_unused_rows, table), *folded)
        with _naming_setting_of(self.location):
            check_tensors(tensors.shapes, table, layout=layout, where=self.location)
            arrays = tensors.read([*(row.stored(layout)[0] for row in table), *copies])
            self._expect_copies(arrays, copies)
        weights = {row.ours: row.convert(arrays[row.stored(layout)[0]], layout) for row in table}
        fold_embeddings(weights, folded)
        for name in weights.keys() & set(VOCABULARY_ROWS) if self.unused_rows else ():
            weights[name] = np.array(weights[name][: self.config.vocab_size])
        return weights

    def _expect_copies(self, arrays: Mapping[str, np.ndarray], copies: Mapping[str, str]) -> None:
        """Raises InputError unless copies of tensors equal their originals."""
        hint = f'a separate output layer needs "tie_word_embeddings": false in {HF_CONFIG}'
        for copy, original in copies.items():
            if not np.array_equal(arrays[copy], arrays[original]):
                where, expected = f"{self.location}: {copy}", f"the same values as {original}"
                raise InputError(where, expected, "other values", hint)

    def _with_unused_rows(self, row: WeightName) -> WeightName:
        """Returns a weight with its shape in the files."""
        if row.ours not in VOCABULARY_ROWS:
            return row
        return dataclasses.replace(row, shape=(row.shape[0] + self.unused_rows, *row.shape[1:]))

    def _folded_table(self) -> tuple[WeightName, ...]:
        if self.config.family.folded_embeddings is None or self.layout != HF:
            return ()
        path = self.directory / HF_CONFIG
        return folded_table(self.config, path.read_json(), where=path)

    def open_files(self) -> ModelTensors:
        """Opens the weight files; the source must have some."""
        with _naming_setting_of(self.location):
            files = FORMATS[self.format](self.weight_files)
            return ModelTensors(files, self.config, self.location)

    def sha256(self) -> str:
        """Returns a digest of configuration and weight files, independent of their location.

        Returns:
            SHA-256, in hexadecimal, of the configuration's JSON followed by one
            line for each weight file: its own SHA-256.
        """
        digest = hashlib.sha256(json_text.dump(self.stored_config.to_dict()))
        for path in mirror_all(self.weight_files):
            digest.update(f"{path.sha256()}\n".encode())
        return digest.hexdigest()


def find_model(directory: Location) -> ModelSource:
    """Finds a model directory's configuration and weights in either layout.

    Args:
        directory: a directory with `config.json` or `bert_config.json`, and weights in one of
            `FORMATS`. If it has several configurations or formats, the first is used.

    Returns:
        the source, whose weights `read_weights` reads.

    Raises:
        InputError: it is not a directory, the configuration is missing or invalid, or weights
            are missing.
    """
    if not directory.is_dir():
        hint = "a model of the hub is named ORG/NAME or hf://NAME"
        raise InputError(directory, received="no such directory", hint=hint)
    for name in (HF_CONFIG, GOOGLE_CONFIG):
        if (directory / name).is_file():
            config = EncoderConfig.from_json(directory / name)
            with _naming_setting_of(directory):
                return _with_tying(_find_weights(config, directory))
    raise InputError(directory, f"{HF_CONFIG} or {GOOGLE_CONFIG}", _describe_content(directory))


def _naming_setting_of(location: Location) -> contextlib.AbstractContextManager[None]:
    """Adds the setting that named a location, if any, to an `InputError` of the block."""
    if location.setting is None:
        return contextlib.nullcontext()
    return naming_setting(location.setting)


def _find_weights(config: EncoderConfig, directory: Location) -> ModelSource:
    """Finds the weights in a configuration's directory."""
    formats = {name: kind for name, kind in FORMATS.items() if kind.layout == HF}
    for name, kind in formats.items():
        if files := kind.find(directory):
            return ModelSource(config, name, files, directory, directory)
    google = FORMATS[_GOOGLE_FORMAT]
    if any((directory / name).is_file() for name in google.file_names):
        prefix = directory / GOOGLE_PREFIX
        return ModelSource(config, _GOOGLE_FORMAT, google.find(prefix), prefix, directory)
    expected = ", ".join(kind.file_names[0] for kind in FORMATS.values())
    raise InputError(directory, f"weights, one of {expected}", _describe_content(directory))


def _describe_content(directory: Location) -> str:
    """Returns a text with the names of a directory's first files."""
    names = sorted(path.name for path in directory.iterdir())
    shown = ", ".join(one_line(name) for name in names[:_SHOWN_FILES])
    rest = f" and {len(names) - _SHOWN_FILES} more" if len(names) > _SHOWN_FILES else ""
    return f"only {shown}{rest}" if names else "an empty directory"


def _with_tying(source: ModelSource) -> ModelSource:
    """Corrects `tie_word_embeddings` of a source by the tensors of its files.

    If the configuration says false, the files may still hold the word embeddings twice, or
    only an encoder. The output layer is then tied.
    """
    if source.config.tie_word_embeddings or source.layout != HF:
        return source
    tied = dataclasses.replace(
        source, config=dataclasses.replace(source.config, tie_word_embeddings=True)
    )
    rows = {row.ours: row.hf for row in weight_table(source.config)}
    names = rows["head/decoder"], rows["encoder/embeddings/word_embeddings"]
    tensors = source.open_files()
    shapes = [tensors.shapes.get(name) for name in names]
    if shapes[0] is None:
        return source if tied.has_head else tied
    if shapes[0] != shapes[1]:
        return source
    decoder, words = tensors.read(names).values()
    return tied if np.array_equal(decoder, words) else source


def load_masked_lm(
    source: ModelSource, *, dtype: str | None = None, logits_dtype: str | None = None, seed: int = 0
) -> "MaskedLM":
    """Makes a model with a source's weights, or with random weights if it has none.

    Args:
        source: the result of `find_model` or `ModelSource.from_google`.
        dtype: name of a dtype policy; None for the global one.
        logits_dtype: see `MaskedLM`.
        seed: the seed of random weights and of dropout.

    Raises:
        InputError: the weights do not match the configuration.
    """
    weights = source.read_weights() if source.has_weights else None
    # This imports Keras, which takes seconds, so the user's input is checked first.
    from pipeline.models.masked_lm import MaskedLM

    model = MaskedLM(source.config, dtype=dtype, logits_dtype=logits_dtype, seed=seed)
    if weights is not None:
        assign_weights(model, weights)
    return model


def _variables(model: "keras.Model") -> dict[str, Any]:
    """Returns the model's weights by our names."""
    return {variable.path.removeprefix(f"{model.path}/"): variable for variable in model.weights}


def assign_weights(model: "keras.Model", weights: Mapping[str, np.ndarray]) -> None:
    """Sets every variable of a model.

    Args:
        model: the model, which is changed only if all weights match.
        weights: arrays by our names, exactly one for each variable.

    Raises:
        ValueError: a weight is missing, surplus or of another shape.
    """
    variables = _variables(model)
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    received = {name: value.shape for name, value in weights.items()}
    for name in sorted(expected.keys() | received.keys()):
        shapes = expected.get(name), received.get(name)
        if shapes[0] != shapes[1]:
            raise ValueError(f"weights: {name}: expected shape {shapes[0]}, received {shapes[1]}")
    for name, variable in variables.items():
        variable.assign(weights[name])


def get_weights(model: "keras.Model") -> dict[str, np.ndarray]:
    """Returns copies of all weights, float32, by our names."""
    variables = _variables(model).items()
    return {name: np.array(variable.numpy(), np.float32) for name, variable in variables}


def save_hf(directory: Location, model: "MaskedLM") -> None:
    """Writes a model's directory in float32; see `save_hf_weights`."""
    save_hf_weights(directory, model.config, get_weights(model))


def save_hf_weights(
    directory: Location,
    config: EncoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    table: Sequence[WeightName] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors`, then `config.json`, each atomically.

    `transformers` loads the directory. A tied output matrix is not stored a second time. If the
    matrix is not tied, the output bias is stored twice, because `transformers` expects both.

    Args:
        directory: an existing directory.
        config: the model's configuration.
        weights: float32 arrays by our names.
        table: the weights to write; by default those of a masked LM.
        settings: the content of `config.json`; by default that of a masked LM.
    """
    table = weight_table(config) if table is None else table
    tensors = {row.hf: row.convert(weights[row.ours], HF) for row in table}
    if not config.tie_word_embeddings:
        copies = tied_hf_names(config).items()
        tensors |= {copy: tensors[original] for copy, original in copies if original in tensors}
    save_tensors(directory / HF_WEIGHTS, tensors)
    (directory / HF_CONFIG).write_json(config.to_hf() if settings is None else settings)
