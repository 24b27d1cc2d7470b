"""Model directories: found, checked, read into a model, and written.

Two layouts are read, Hugging Face's (`config.json` and weights) and Google's
(`bert_config.json`, `bert_model.ckpt`); Hugging Face's is written. Nothing is ever
unpickled. Keras and TensorFlow are imported only where weights meet a model, so that
a wrong path is reported at once.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location, mirror_all
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import FORMATS
from pipeline.models.formats.base import WeightFiles
from pipeline.models.formats.safetensors_files import HF_WEIGHTS, save_tensors
from pipeline.models.weight_names import HF, WeightName, check_tensors, tied_hf_names, weight_table

if TYPE_CHECKING:
    import keras

    from pipeline.models.masked_lm import MaskedLM

HF_CONFIG = "config.json"
GOOGLE_CONFIG = "bert_config.json"
GOOGLE_PREFIX = "bert_model.ckpt"
_GOOGLE_FORMAT = "tf1"
_PICKLE = "pytorch_model.bin"


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model on disk whose files are known to be there, its weights not yet read.

    Attributes:
        config: the encoder's configuration.
        format: of its weights, a key of `FORMATS`.
        weight_files: the files that hold the weights; empty for random weights.
        location: the directory, or the prefix of Google's checkpoint; None for random
            weights.
        directory: where the configuration lies, and usually the tokenizer.
    """

    config: EncoderConfig
    format: str
    weight_files: tuple[Location, ...]
    location: Location | None
    directory: Location

    @classmethod
    def from_google(cls, config_file: Location, checkpoint: Location | None) -> "ModelSource":
        """Resolves a configuration file and a checkpoint's prefix.

        Args:
            config_file: Google's `bert_config.json` (or a `config.json`).
            checkpoint: prefix such as `…/bert_model.ckpt`, the name of its
                `.index` file too; None for random weights.

        Raises:
            InputError: a file is missing or the configuration is not valid.
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
        """Whether there are weights to read; without, a model starts at random."""
        return self.location is not None

    def read_weights(self, table: Sequence[WeightName] | None = None) -> dict[str, np.ndarray]:
        """Reads weights; float32 arrays by our names.

        Args:
            table: the weights to read; by default those of a masked LM, whose output
                layer must be tied.

        Raises:
            InputError: the weights are not those of the configuration.
            ValueError: there are none, see `has_weights`.
        """
        if self.location is None:
            raise ValueError("read_weights: expected a source with weights, received one without")
        tensors, layout = self.open_files(), self.layout
        tied = tied_hf_names(self.config) if table is None and layout == HF else {}
        table = weight_table(self.config) if table is None else table
        check_tensors(tensors.shapes, table, layout=layout, where=self.location)
        copies = [name for name in tied if name in tensors.shapes]
        arrays = tensors.read([*(row.stored(layout)[0] for row in table), *copies])
        for copy in copies:
            if not np.array_equal(arrays[copy], arrays[tied[copy]]):
                where, expected = f"{self.location}: {copy}", f"the same values as {tied[copy]}"
                hint = "a model with an untied output layer is not supported"
                raise InputError(where, expected, "others", hint)
        return {row.ours: row.convert(arrays[row.stored(layout)[0]], layout) for row in table}

    def open_files(self) -> WeightFiles:
        """Opens the files of its weights, of which there must be some."""
        return FORMATS[self.format](self.weight_files)

    def sha256(self) -> str:
        """Returns a digest of configuration and weight files, wherever they lie.

        Returns:
            SHA-256, in hexadecimal, of the configuration's JSON followed by one
            line for each weight file: its own SHA-256.
        """
        digest = hashlib.sha256(json_text.dump(self.config.to_dict()))
        for path in mirror_all(self.weight_files):
            digest.update(f"{path.sha256()}\n".encode())
        return digest.hexdigest()


def find_model(directory: Location) -> ModelSource:
    """Finds a model directory's configuration and weights in either layout.

    Args:
        directory: holds `config.json` with weights in Hugging Face's layout, or
            `bert_config.json` with `bert_model.ckpt.index`; when both, the first is taken.

    Returns:
        the source; its weights are read by `read_weights`.

    Raises:
        InputError: not a directory, neither layout, weights missing, or an invalid
            configuration.
    """
    if not directory.is_dir():
        hint = "a model of the hub is named ORG/NAME or hf://NAME"
        raise InputError(directory, received="no such directory", hint=hint)
    if (directory / HF_CONFIG).is_file():
        config = EncoderConfig.from_json(directory / HF_CONFIG)
        name, files = _find_hf_weights(directory)
        return ModelSource(config, name, files, directory, directory)
    if (directory / GOOGLE_CONFIG).is_file():
        return ModelSource.from_google(directory / GOOGLE_CONFIG, directory / GOOGLE_PREFIX)
    raise InputError(directory, f"{HF_CONFIG} or {GOOGLE_CONFIG}", "neither")


def _find_hf_weights(directory: Location) -> tuple[str, tuple[Location, ...]]:
    """Returns the format and the files of the weights beside a `config.json`."""
    formats = {name: kind for name, kind in FORMATS.items() if kind.layout == HF}
    for name, kind in formats.items():
        if files := kind.find(directory):
            return name, files
    expected = " or ".join(name for kind in formats.values() for name in kind.file_names)
    if not any((directory / f"{_PICKLE}{suffix}").is_file() for suffix in ("", ".index.json")):
        raise InputError(directory, expected, "none of them")
    model, path = "AutoModelForMaskedLM", repr(str(directory))
    hint = (
        f'convert it: python -c "from transformers import {model}; '
        f'{model}.from_pretrained({path}).save_pretrained({path}, safe_serialization=True)"'
    )
    received = f"only {_PICKLE}, which is a pickle and is not read"
    raise InputError(directory, expected, received, hint)


def load_masked_lm(
    source: ModelSource, *, dtype: str | None = None, logits_dtype: str | None = None, seed: int = 0
) -> "MaskedLM":
    """Makes a model with a source's weights, or random ones where it has none.

    Args:
        source: from `find_model` or `ModelSource.from_google`.
        dtype: name of a dtype policy, None for the global one.
        logits_dtype: see `MaskedLM`.
        seed: of random weights and of dropout.

    Raises:
        InputError: the weights are not those of the configuration.
    """
    weights = source.read_weights() if source.has_weights else None
    # Imports Keras, after everything that a user may have got wrong.
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
        model: is changed in place, only if everything fits.
        weights: arrays by our names, one for each variable and no other.

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
    """Writes a model as `save_hf_weights` does, in float32."""
    save_hf_weights(directory, model.config, get_weights(model))


def save_hf_weights(
    directory: Location,
    config: EncoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    table: Sequence[WeightName] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json`, each atomically, the weights first.

    `transformers` loads the directory. The tied output matrix is not stored a second time.

    Args:
        directory: must exist.
        config: the model's configuration.
        weights: float32 arrays by our names.
        table: the weights to write; by default those of a masked LM.
        settings: the content of `config.json`; by default that of a masked LM.
    """
    table = weight_table(config) if table is None else table
    tensors = {row.hf: row.convert(weights[row.ours], HF) for row in table}
    save_tensors(directory / HF_WEIGHTS, tensors)
    (directory / HF_CONFIG).write_json(config.to_hf() if settings is None else settings)
