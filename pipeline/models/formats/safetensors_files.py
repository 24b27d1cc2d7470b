"""The safetensors files of a Hugging Face directory: found, listed, read and written."""

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the dtype bfloat16)
import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location, mirror_all
from pipeline.models.formats.base import WeightFiles
from pipeline.models.weight_names import HF

HF_WEIGHTS = "model.safetensors"
HF_INDEX = f"{HF_WEIGHTS}.index.json"

# Of a file, on any system.
_MAX_NAME = 200
_FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles(WeightFiles):
    """One file, or the shards that an index names."""

    layout = HF
    file_names = (HF_WEIGHTS, HF_INDEX)

    def __init__(self, files: tuple[Location, ...]) -> None:
        self._files = files
        # The file of each tensor, and its name there.
        self._stored: dict[str, tuple[Location, str]] = {}
        self.shapes = {}
        for path, file in self._opened():
            for stored_name in file.keys():  # noqa: SIM118  (it is no mapping)
                name = modern_name(stored_name)
                if name in self._stored:
                    first_path, first_name = self._stored[name]
                    first = f"first as {_one_line(first_name)} in {first_path.name}"
                    received = f"tensor {_one_line(stored_name)} is there twice, {first}"
                    raise InputError(path, received=received)
                self._stored[name] = (path, stored_name)
                with _reading(path):
                    self.shapes[name] = tuple(file.get_slice(stored_name).get_shape())

    @classmethod
    def find(cls, location: Location) -> tuple[Location, ...]:
        """See `WeightFiles`; the shards of an index in the order of their names."""
        if (location / HF_WEIGHTS).is_file():
            return (location / HF_WEIGHTS,)
        index = location / HF_INDEX
        return _indexed_files(index) if index.is_file() else ()

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """See `WeightFiles`."""
        arrays: dict[str, np.ndarray] = {}
        for path, file in self._opened():
            for name in names:
                tensor_path, stored_name = self._stored[name]
                if tensor_path != path:
                    continue
                with _reading(path):
                    dtype = file.get_slice(stored_name).get_dtype()
                    if dtype not in _FLOATS:
                        where = f"{path}: {_one_line(stored_name)}"
                        raise InputError(where, f"one of {', '.join(_FLOATS)}", dtype)
                    arrays[name] = file.get_tensor(stored_name).astype(np.float32)
        return arrays

    def _opened(self) -> Iterator[tuple[Location, Any]]:
        # Steps of random weights are timed where safetensors is not installed.
        from safetensors import safe_open

        for path, copy in zip(self._files, mirror_all(self._files), strict=True):
            with _reading(path):
                opened = safe_open(copy, framework="np")
            with opened as file:
                yield path, file


def _indexed_files(index: Location) -> tuple[Location, ...]:
    weight_map = index.read_json().get("weight_map")
    where = f"{index}: weight_map"
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(where, "an object of file names")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name with a folder in it would make us read outside the model directory.
        is_plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
        if not is_plain or not name.endswith(".safetensors") or len(name) > _MAX_NAME:
            expected = "the name of a .safetensors file beside the index"
            raise InputError(where, expected, shown(name))
        if not (index.parent / name).is_file():
            raise InputError(where, received=f"no such file: {index.parent / name}")
    return tuple(index.parent / name for name in names)


def modern_name(name: str) -> str:
    """Returns today's name of a tensor: files of 2019 call a norm's weights gamma and beta."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


@contextlib.contextmanager
def _reading(path: Location) -> Iterator[None]:
    """Turns what safetensors raises in the block, of a damaged file, into an `InputError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        expected = f"a safetensors file, cannot read it ({_one_line(str(error))})"
        raise InputError(path, expected) from error


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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with path.atomic_write() as temporary:
        try:
            # The format that `transformers` asks for.
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if before_publishing is not None:
            before_publishing(temporary)
