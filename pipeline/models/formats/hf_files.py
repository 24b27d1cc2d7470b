"""Weights by Hugging Face's names, in one file or in the shards that an index names."""

import abc
import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import LocalLocation, Location, mirror_all
from pipeline.models.formats.base import WeightFiles
from pipeline.models.weight_names import HF, Shape

# The beginning of the pointer that a clone without Git LFS has instead of a large file.
_POINTER = b"version https://git-lfs"
# The maximum length of a file name, for any operating system.
_MAX_NAME = 200


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Attributes:
        shape: its shape in the file.
        read: a function that returns the values in float32.
    """

    shape: Shape
    read: Callable[[], np.ndarray]


class HfFiles(WeightFiles):
    """One file, or the shards that an index names.

    A subclass opens one file.

    Attributes:
        file_names: the names of the single file and of the index.
    """

    layout = HF
    file_names: ClassVar[tuple[str, str]]

    def __init__(self, files: tuple[Location, ...]) -> None:
        self._files = files
        # The file of each tensor, and its name in the file.
        self._stored: dict[str, tuple[Location, str]] = {}
        self.shapes = {}
        for path, tensors in self._opened():
            for stored_name, tensor in tensors.items():
                name = modern_name(stored_name)
                if name in self._stored:
                    first_path, first_name = self._stored[name]
                    first = f"first as {one_line(first_name)} in {first_path.name}"
                    received = f"tensor {one_line(stored_name)} twice, {first}"
                    raise InputError(path, received=received)
                self._stored[name] = (path, stored_name)
                self.shapes[name] = tensor.shape

    @classmethod
    def find(cls, location: Location) -> tuple[Location, ...]:
        """See `WeightFiles`; the shards of an index in the order of their names."""
        whole, index = (location / name for name in cls.file_names)
        if whole.is_file():
            return (whole,)
        return _indexed_files(index, whole.suffix) if index.is_file() else ()

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """See `WeightFiles`."""
        arrays: dict[str, np.ndarray] = {}
        for path, tensors in self._opened():
            for name in names:
                tensor_path, stored_name = self._stored[name]
                if tensor_path != path:
                    continue
                tensor = tensors.get(stored_name)
                if tensor is None or tensor.shape != self.shapes[name]:
                    received = f"{one_line(stored_name)} changed while the file was read"
                    raise InputError(path, received=received)
                arrays[name] = tensor.read()
        return arrays

    @classmethod
    @abc.abstractmethod
    def open_file(
        cls, path: Location, copy: LocalLocation
    ) -> contextlib.AbstractContextManager[Mapping[str, StoredTensor]]:
        """Opens one file.

        Args:
            path: the file, for messages.
            copy: a local copy of the file.

        Returns:
            a context manager that gives the tensors by their names in the file. They can be
            read only inside the block.

        Raises:
            InputError: the file is damaged or of another format.
        """

    def _opened(self) -> Iterator[tuple[Location, Mapping[str, StoredTensor]]]:
        for path, copy in zip(self._files, mirror_all(self._files), strict=True):
            with open(copy, "rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    received, hint = "a pointer of Git LFS", "run git lfs pull to get the file"
                    raise InputError(path, "weights", received, hint)
            with self.open_file(path, copy) as tensors:
                yield path, tensors


def _indexed_files(index: Location, suffix: str) -> tuple[Location, ...]:
    weight_map = index.read_json().get("weight_map")
    where = f"{index}: weight_map"
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(where, "an object of file names", format_value(weight_map))
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name with a folder in it could point outside the model directory.
        is_plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
        if not is_plain or not name.endswith(suffix) or len(name) > _MAX_NAME:
            expected = f"names of {suffix} files in the directory of the index"
            raise InputError(where, expected, format_value(name))
        if not (index.parent / name).is_file():
            received = f"no such file: {index.parent / name}"
            raise InputError(where, received=received, hint="get all files of the model")
    return tuple(index.parent / name for name in names)


def modern_name(name: str) -> str:
    """Returns the current name of a tensor; files of 2019 call a norm's weights gamma and beta."""
    name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
    return re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)


def expect_floats(path: Location, name: str, dtype: Any, is_float: bool) -> None:
    """Raises InputError unless a tensor's values are floats of a supported size."""
    if not is_float:
        expected = "floats of 16, 32 or 64 bits"
        raise InputError(f"{path}: {one_line(name)}", expected, one_line(str(dtype)))


def one_line(text: str) -> str:
    """Returns the beginning of a text from a file, as a single line."""
    return " ".join(text.split())[:200]
