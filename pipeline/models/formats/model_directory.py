"""Model directories: found, checked, read into a model, and written.

Two layouts are read, Hugging Face's (`config.json`, `model.safetensors`, also in
shards) and Google's (`bert_config.json`, `bert_model.ckpt`); Hugging Face's is
written. Nothing is ever unpickled. Keras and TensorFlow are imported only where
weights meet a model, so that a wrong path is reported at once.
"""

import dataclasses
import errno
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location, mirror_all
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.safetensors_files import (
    HF_WEIGHTS,
    hf_weight_files,
    list_tensors,
    read_tensors,
)
from pipeline.models.weight_names import (
    Shape,
    WeightName,
    check_tensors,
    tied_hf_names,
    weight_table,
)

if TYPE_CHECKING:
    import keras

    from pipeline.models.masked_lm import MaskedLM

HF_CONFIG = "config.json"
GOOGLE_CONFIG = "bert_config.json"
GOOGLE_PREFIX = "bert_model.ckpt"


def _check_tied(arrays: Mapping[str, np.ndarray], tied: Mapping[str, str], where: str) -> None:
    """Raises InputError when a stored copy of a tied tensor differs from its original."""
    for copy, original in tied.items():
        if copy in arrays and not np.array_equal(arrays[copy], arrays[original]):
            raise InputError(
                where,
                received=f"{copy}: expected the same values as {original}, received others",
                hint="a model with an untied output layer is not supported",
            )


def read_hf_weights(
    directory: Location, config: EncoderConfig, table: Sequence[WeightName] | None = None
) -> dict[str, np.ndarray]:
    """Reads the weights of a model in Hugging Face's layout.

    Args:
        directory: holds `model.safetensors`, or an index and its shards.
        config: the model's configuration.
        table: the weights to read; by default those of a masked LM, whose output
            layer must be tied.

    Returns:
        float32 arrays by our names (`weight_names`), every weight present.

    Raises:
        InputError: no safetensors file, an unreadable one, tensors that are not
            those of the configuration, or an untied output layer.
    """
    files = hf_weight_files(directory)
    tensors = list_tensors(files)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    tied = tied_hf_names(config) if table is None else {}
    table = weight_table(config) if table is None else table
    check_tensors(shapes, config, layout="hf", where=str(directory), table=table)
    wanted = {
        name: tensors[name] for name in (*(row.hf for row in table), *tied) if name in tensors
    }
    arrays = read_tensors(files, wanted)
    _check_tied(arrays, tied, str(directory))
    return {
        row.ours: np.ascontiguousarray(arrays[row.hf].T if row.transpose_hf else arrays[row.hf])
        for row in table
    }


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model on disk whose files are known to be there, its weights not yet read.

    Attributes:
        config: the encoder's configuration.
        layout: `"hf"` or `"tf1"`.
        weight_files: the files that hold the weights; empty for random weights.
        location: the directory (hf) or the checkpoint's prefix (tf1); None for
            random weights.
        directory: where the configuration lies, and usually the tokenizer.
    """

    config: EncoderConfig
    layout: str
    weight_files: tuple[Location, ...]
    location: Location | None
    directory: Location

    @classmethod
    def from_google(
        cls,
        config_file: Location,
        checkpoint: Location | None,
    ) -> "ModelSource":
        """Resolves a configuration file and a checkpoint's prefix.

        Args:
            config_file: Google's `bert_config.json` (or a `config.json`).
            checkpoint: prefix such as `…/bert_model.ckpt`, the name of its
                `.index` file too; None for random weights.

        Raises:
            InputError: a file is missing or the configuration is not valid.
        """
        if not config_file.is_file():
            raise InputError(config_file, received="no such file")
        config = EncoderConfig.from_json(config_file)
        prefix, files = None, ()
        if checkpoint is not None:
            prefix = checkpoint.with_name(checkpoint.name.removesuffix(".index"))
            files = _tf1_files(prefix)
        return cls(config, "tf1", files, prefix, config_file.parent)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to read; without, a model starts at random."""
        return self.location is not None

    def tensor_shapes(self) -> dict[str, Shape]:
        """Returns the shape of every tensor on disk by its name there; none for random weights.

        Raises:
            InputError: a file cannot be read.
        """
        if self.location is None:
            return {}
        if self.layout == "hf":
            tensors = list_tensors(self.weight_files)
            return {name: tensor.shape for name, tensor in tensors.items()}
        from pipeline.models.formats.tf1_checkpoint import read_tf1_shapes

        return read_tf1_shapes(self._local_prefix())

    def read_weights(self, table: Sequence[WeightName] | None = None) -> dict[str, np.ndarray]:
        """Reads weights; float32 arrays by our names.

        Args:
            table: which; all of a masked LM's by default.

        Raises:
            InputError: the weights are not those of the configuration.
            ValueError: there are none, see `has_weights`.
        """
        if self.location is None:
            raise ValueError("read_weights: expected a source with weights, received one without")
        if self.layout == "hf":
            return read_hf_weights(self.location, self.config, table)
        # Imports TensorFlow, which other sources do not need.
        from pipeline.models.formats.tf1_checkpoint import read_tf1_weights

        return read_tf1_weights(self._local_prefix(), self.config, table)

    def _local_prefix(self) -> str:
        """Returns the prefix of a TensorFlow checkpoint on this machine."""
        index = mirror_all(self.weight_files)[-1]
        return str(index).removesuffix(".index")

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


def _tf1_files(prefix: Location) -> tuple[Location, ...]:
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise InputError(prefix, "the prefix of a TensorFlow checkpoint", f"no file {index}")
    shards = sorted(
        path for path in prefix.parent.iterdir() if path.name.startswith(f"{prefix.name}.data-")
    )
    if not shards:
        raise InputError(prefix, received=f"no file {prefix.name}.data-00000-of-00001")
    return (*shards, index)


def find_model(directory: Location) -> ModelSource:
    """Finds a model directory's configuration and weights in either layout.

    Args:
        directory: holds `config.json` with safetensors, or `bert_config.json` with
            `bert_model.ckpt.index`; when both, the first is taken.

    Returns:
        the source; its weights are read by `read_weights`.

    Raises:
        InputError: not a directory, neither layout, weights missing, or an invalid
            configuration.
    """
    if not directory.is_dir():
        raise InputError(
            directory,
            received="no such directory (a model of a hub must be downloaded first)",
        )
    config_file = directory / HF_CONFIG
    if config_file.is_file():
        config, files = EncoderConfig.from_json(config_file), hf_weight_files(directory)
        return ModelSource(config, "hf", files, directory, config_file.parent)
    if (directory / GOOGLE_CONFIG).is_file():
        return ModelSource.from_google(directory / GOOGLE_CONFIG, directory / GOOGLE_PREFIX)
    raise InputError(directory, f"{HF_CONFIG} or {GOOGLE_CONFIG}", "neither")


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
    differing = sorted(variables.keys() ^ weights.keys())
    if differing:
        raise ValueError(
            f"weights: expected one for each of {len(variables)} variables, received "
            f"{len(weights)}; differing: {', '.join(differing[:3])}"
        )
    for name, variable in variables.items():
        if tuple(variable.shape) != weights[name].shape:
            raise ValueError(
                f"weights: {name}: expected shape {list(variable.shape)}, "
                f"received {list(weights[name].shape)}"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


def get_weights(model: "keras.Model") -> dict[str, np.ndarray]:
    """Returns copies of all weights, float32, by our names."""
    return {
        name: np.array(variable.numpy(), dtype=np.float32)
        for name, variable in _variables(model).items()
    }


def save_tensors(
    path: Location,
    tensors: Mapping[str, np.ndarray],
    *,
    before_publishing: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes a safetensors file atomically.

    Args:
        path: the file.
        tensors: contiguous arrays by name.
        before_publishing: gets the whole file under the name that it has until then.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    with path.atomic_write() as temporary:
        try:
            # The format that `transformers` asks for.
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if before_publishing is not None:
            before_publishing(temporary)


def save_hf(directory: Location, model: "MaskedLM") -> None:
    """Writes a model as `save_hf_weights` does, in float32."""
    save_hf_weights(directory, model.config, get_weights(model))


def save_hf_weights(
    directory: Location, config: EncoderConfig, weights: Mapping[str, np.ndarray]
) -> None:
    """Writes `model.safetensors` and `config.json`, each atomically, the weights first.

    `transformers` loads the directory as the family's masked LM. The tied output
    matrix is not stored a second time.

    Args:
        directory: must exist.
        config: the model's configuration.
        weights: float32 arrays by our names.
    """
    save_hf_tensors(directory, weights, weight_table(config), config.to_hf())


def save_hf_tensors(
    directory: Location,
    weights: Mapping[str, np.ndarray],
    table: Sequence[WeightName],
    settings: Mapping[str, Any],
) -> None:
    """Writes `model.safetensors` and `config.json`, each atomically, the weights first.

    Args:
        directory: must exist.
        weights: float32 arrays by our names.
        table: which of them, and their names in the file.
        settings: the content of `config.json`.
    """
    tensors = {
        row.hf: np.ascontiguousarray(weights[row.ours].T if row.transpose_hf else weights[row.ours])
        for row in table
    }
    save_tensors(directory / HF_WEIGHTS, tensors)
    (directory / HF_CONFIG).write_json(settings)
