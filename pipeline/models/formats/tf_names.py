"""Names of the variables of `transformers`' TensorFlow models, and Hugging Face's for them.

A variable's scope is the model's class, such as `tf_bert_for_masked_lm`. An h5 file repeats the
layer's name before it. `A___B` stands for B, and `_._` for a level:
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
# Other last parts of a name stay.
_LAST = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}
# ALBERT's TensorFlow model has two output biases, and adds the second.
_COMPUTING = {"predictions.bias": "predictions.decoder.bias"}


def to_hf(path: Location, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns tensors by Hugging Face's names, kernels transposed as there.

    An h5 file has a variable once for each layer that uses it, such as the word embeddings in
    a head; it is taken from its own layer.

    Raises:
        InputError: two tensors of different shapes have the same name.
    """
    renamed: dict[str, StoredTensor] = {}
    for stored_name in sorted(tensors, key=lambda name: (not _is_of_own_layer(name), name)):
        tensor, name = tensors[stored_name], hf_name(stored_name)
        if _KERNEL.fullmatch(stored_name) and len(tensor.shape) == 2:
            tensor = _transposed(tensor)
        if renamed.setdefault(name, tensor).shape != tensor.shape:
            received = f"tensor {one_line(stored_name)} is there twice, in two shapes"
            raise InputError(path, received=received)
    for bias, computing in _COMPUTING.items():
        if computing in renamed:
            renamed[bias] = renamed[computing]
    return renamed


def hf_name(name: str) -> str:
    """Returns Hugging Face's name of a variable."""
    levels = "/".join(part.rpartition("___")[2] for part in _own_parts(name)).replace("_._", "/")
    *scope, last = [part for part in levels.split("/") if part] or [""]
    return ".".join([*scope, _LAST.get(last, last)])


def _own_parts(name: str) -> list[str]:
    """Returns the parts of a name after the layer's in an h5 file and after the model's scope."""
    parts = re.sub(r":\d+$", "", name).split("/")
    for place, part in enumerate(parts[:2]):
        if _MODEL_SCOPE.fullmatch(part):
            return parts[place + 1 :]
    # A model whose variables have no scope, or one of another name.
    repeated = [place for place in (1, 2) if parts[place : place + 1] == parts[:1]]
    return parts[repeated[0] :] if repeated else parts


def _is_of_own_layer(name: str) -> bool:
    return name.partition("/")[0] == _own_parts(name)[0]


def _transposed(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor(tensor.shape[::-1], lambda: tensor.read().T)
