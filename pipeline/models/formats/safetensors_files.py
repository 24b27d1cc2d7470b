"""The safetensors files of a Hugging Face directory: found, listed and read; never a pickle."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the dtype bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location, mirror_all
from pipeline.models.weight_names import Shape, modern_hf_name

HF_WEIGHTS = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"
HF_PICKLE = "pytorch_model.bin"

# Of a file, on any system.
_MAX_NAME = 200
_FLOATS = ("F64", "F32", "F16", "BF16")


def hf_weight_files(directory: Location) -> tuple[Location, ...]:
    """Returns the safetensors files of a directory, the index's shards in sorted order."""
    if (directory / HF_WEIGHTS).is_file():
        return (directory / HF_WEIGHTS,)
    if (directory / HF_INDEX).is_file():
        return _indexed_files(directory / HF_INDEX)
    if (directory / HF_PICKLE).is_file() or (directory / f"{HF_PICKLE}.index.json").is_file():
        raise InputError(
            directory,
            HF_WEIGHTS,
            f"only {HF_PICKLE}, which is a pickle and is not read",
            hint='convert it: python -c "from transformers import AutoModelForMaskedLM; '
            f"AutoModelForMaskedLM.from_pretrained({str(directory)!r})"
            f'.save_pretrained({str(directory)!r}, safe_serialization=True)"',
        )
    raise InputError(directory, f"{HF_WEIGHTS} or {HF_INDEX}", "neither")


def _indexed_files(index: Location) -> tuple[Location, ...]:
    weight_map = index.read_json().get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(index, received="weight_map: expected an object of file names")
    files = []
    for name in sorted({str(name) for name in weight_map.values()}):
        # A name with a folder in it would make us read outside the model directory.
        is_plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
        if not is_plain or not name.endswith(".safetensors") or len(name) > _MAX_NAME:
            raise InputError(
                index,
                received="weight_map: expected the name of a .safetensors file beside the index, "
                f"received {shown(name)}",
            )
        if not (index.parent / name).is_file():
            raise InputError(index, received=f"weight_map: no such file: {index.parent / name}")
        files.append(index.parent / name)
    return tuple(files)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a safetensors file is, without its content."""

    file: Location
    stored_name: str
    shape: Shape


def list_tensors(files: tuple[Location, ...]) -> dict[str, StoredTensor]:
    """Returns all tensors by their modern names."""
    tensors: dict[str, StoredTensor] = {}
    for path, file in _opened(files):
        for stored_name in file.keys():  # noqa: SIM118  (it is no mapping)
            name = modern_hf_name(stored_name)
            if name in tensors:
                raise InputError(
                    path,
                    received=f"tensor {_one_line(stored_name)} is there twice, first as "
                    f"{_one_line(tensors[name].stored_name)} in {tensors[name].file.name}",
                )
            with _reading(path):
                shape = tuple(file.get_slice(stored_name).get_shape())
            tensors[name] = StoredTensor(path, stored_name, shape)
    return tensors


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _opened(files: tuple[Location, ...]) -> Iterator[tuple[Location, Any]]:
    for path, copy in zip(files, mirror_all(files), strict=True):
        with _reading(path):
            opened = safe_open(copy, framework="np")
        with opened as file:
            yield path, file


@contextlib.contextmanager
def _reading(path: Location) -> Iterator[None]:
    """Makes what safetensors raises in the block, of a damaged file, an error for people."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(
            path, f"a safetensors file, cannot read it ({_one_line(str(error))})"
        ) from error


def read_tensors(files: tuple[Location, ...], wanted: Mapping[str, StoredTensor]) -> dict:
    """Returns the wanted tensors, float32, by the keys of `wanted`."""
    arrays: dict[str, np.ndarray] = {}
    for path, file in _opened(files):
        for name, tensor in wanted.items():
            if tensor.file != path:
                continue
            with _reading(path):
                dtype = file.get_slice(tensor.stored_name).get_dtype()
            if dtype not in _FLOATS:
                raise InputError(
                    path,
                    received=f"{_one_line(tensor.stored_name)}: expected one of "
                    f"{', '.join(_FLOATS)}, received {dtype}",
                )
            with _reading(path):
                arrays[name] = file.get_tensor(tensor.stored_name).astype(np.float32)
    return arrays
