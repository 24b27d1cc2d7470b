"""Hugging Face's names for the variables of `transformers`' TensorFlow models.

A variable's scope is the model's class, such as `tf_bert_for_masked_lm`. An h5 file repeats the
layer's name before it. `A___B` stands for B, and `_._` separates levels. For example,
`bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0` is
`bert.encoder.layer.0.output.dense.weight`.
"""

import re
from collections.abc import Mapping

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats.hf_files import StoredTensor, one_line

_MODEL_SCOPE = re.compile(r"tf_\w+")
_KERNEL = re.compile(r"(?:.*/)?kernel(?::\d+)?", re.DOTALL)
# Replacements of the last level of a name; other names stay.
_LAST = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}
# ALBERT's TensorFlow model stores two output biases but computes only with the second.
_COMPUTING = {"predictions.bias": "predictions.decoder.bias"}


def to_hf(path: Location, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns tensors by Hugging Face's names and shapes, with kernels transposed.

    An h5 file has a variable once for each layer that uses it. For example, a head also has the
    word embeddings. The variable is then taken from the layer that owns it.

    Raises:
        InputError: two tensors of different shapes have the same name.
    """
    renamed: dict[str, StoredTensor] = {}
    for stored_name in sorted(tensors, key=lambda name: (not _is_of_own_layer(name), name)):
        tensor, name = tensors[stored_name], hf_name(stored_name)
        if _KERNEL.fullmatch(stored_name) and len(tensor.shape) == 2:
            tensor = _transposed(tensor)
        if renamed.setdefault(name, tensor).shape != tensor.shape:
            received = f"tensor {one_line(stored_name)} twice, with different shapes"
            raise InputError(path, received=received)
    for bias, computing in _COMPUTING.items():
        if computing in renamed:
            renamed[bias] = renamed[computing]
    return renamed


def hf_name(name: str) -> str:
    """Returns Hugging Face's name of a variable."""
    path = "/".join(level.rpartition("___")[2] for level in _own_levels(name)).replace("_._", "/")
    *scope, last = [level for level in path.split("/") if level] or [""]
    return ".".join([*scope, _LAST.get(last, last)])


def _own_levels(name: str) -> list[str]:
    """Returns the levels of a name without the h5 file's layer and the model's scope."""
    levels = re.sub(r":\d+$", "", name).split("/")
    for index, level in enumerate(levels[:2]):
        if _MODEL_SCOPE.fullmatch(level):
            return levels[index + 1 :]
    # The variables of this model have no scope, or a scope of another name.
    repeated = [index for index in (1, 2) if levels[index : index + 1] == levels[:1]]
    return levels[repeated[0] :] if repeated else levels


def _is_of_own_layer(name: str) -> bool:
    return name.partition("/")[0] == _own_levels(name)[0]


def _transposed(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor(tensor.shape[::-1], lambda: tensor.read().T)
