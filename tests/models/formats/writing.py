"""Writers of PyTorch's and TensorFlow's files without these libraries, also of invalid files."""

import pathlib
import re
import zipfile
from collections.abc import Mapping

import h5py
import numpy as np

# PyTorch's names of element types.
_STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double"}
_STORAGES |= {"int64": "Long", "int32": "Int", "bool": "Bool"}
FALSE, EMPTY_TUPLE, REDUCE, BUILD = b"\x89", b")", b"R", b"b"


# Pieces of a pickle of protocol 2.


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + len(content).to_bytes(4, "little") + content


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + len(content).to_bytes(1, "little") + content


def items(*values: bytes) -> bytes:
    """Returns the instructions that make a tuple."""
    return b"(" + b"".join(values) + b"t"


def integers(values: tuple[int, ...]) -> bytes:
    return items(*map(integer, values))


def name_of(module: str, attribute: str) -> bytes:
    """Returns the instruction that imports a function or a class."""
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name_of(module, attribute) + items(*arguments) + REDUCE


def mapping(values: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def storage(kind: str, key: str, numel: int) -> bytes:
    names = text("storage"), name_of("torch", f"{kind}Storage"), text(key), text("cpu")
    return items(*names, integer(numel)) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    numbers = integer(offset), integers(size), integers(stride)
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", stored, *numbers, FALSE, hooks)


def pickle_of(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides of a contiguous tensor, in elements."""
    return tuple(int(np.prod(shape[place + 1 :])) for place in range(len(shape)))


# Complete files.


def write_archive(
    path: pathlib.Path,
    pickled: bytes,
    storages: Mapping[str, bytes],
    *,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes the zip archive of `torch.save`."""
    entries = {"data.pkl": pickled, "byteorder": b"little"}
    entries |= {f"data/{key}": content for key, content in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (entries | {"version": b"3\n"} | dict(others or {})).items():
            archive.writestr(f"archive/{name}", content)


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as `torch.save` does."""
    storages, pickled = {}, {}
    for number, (name, value) in enumerate(tensors.items()):
        key = str(number)
        stored = storage(_STORAGES[value.dtype.name], key, value.size)
        pickled[name] = tensor(stored, 0, value.shape, strides_of(value.shape))
        storages[key] = value.tobytes()
    write_archive(path, pickle_of(mapping(pickled)), storages)


def tf_name(name: str) -> str:
    """Returns the name in `tf_model.h5` of a tensor of `BertForMaskedLM`."""
    levels = re.sub(r"\.layer\.(\d+)", r".layer#\1", name).split(".")
    scope = {"cls": "mlm___cls"}.get(levels[0], levels[0])
    is_norm, is_table = "LayerNorm" in levels, "embeddings" in levels
    lasts = {"weight": "gamma", "bias": "beta"} if is_norm else {"weight": "kernel"}
    if is_table and not is_norm:
        lasts = {"weight": "weight" if "word_embeddings" in levels else "embeddings"}
    last = lasts.get(levels[-1], levels[-1])
    stored = "/".join([scope, "tf_bert_for_masked_lm", scope, *levels[1:-1], f"{last}:0"])
    return stored.replace("#", "_._")


def write_h5(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors, by Hugging Face's names, as `TFBertForMaskedLM.save_pretrained` does."""
    with h5py.File(path, "w") as file:
        for name, value in tensors.items():
            stored = tf_name(name)
            file[stored] = value.T if stored.endswith("/kernel:0") else value
        # The output layer stores its tied matrix a second time.
        words = tensors.get("bert.embeddings.word_embeddings.weight")
        if words is not None:
            scope = "mlm___cls/tf_bert_for_masked_lm"
            file[f"{scope}/bert/embeddings/word_embeddings/weight:0"] = words
