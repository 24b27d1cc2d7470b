"""PyTorch's files, `pytorch_model.bin`, single or sharded; torch is not needed.

`torch.save` writes a zip archive. Its entry `data.pkl` is a pickle of the tensors' names and
shapes. The entries `data/0`, `data/1`, … hold their numbers, uncompressed. No code of the
pickle is run; see `torch_pickle`.
"""

import contextlib
import functools
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  (teaches NumPy the dtype bfloat16)
import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation, Location
from pipeline.models.formats.hf_files import HfFiles, StoredTensor, expect_floats, one_line
from pipeline.models.formats.torch_pickle import PickleError, TensorView, read_pickle

_FORMAT = "a file of torch.save with a model's tensors by name"
# A tensor takes a few hundred bytes in the pickle.
_MAX_PICKLE_BYTES = 8 * 2**20
_PICKLE, _BYTE_ORDER, _MAX_WORD = "data.pkl", "byteorder", 16
# Entries that only a TorchScript archive has.
_SCRIPT = ("constants.pkl", "code/")
# The header before an entry's name; its two numbers are the lengths of name and extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_HEADER_BYTES = _LOCAL_HEADER.size
_LOCAL_MAGIC = b"PK\x03\x04"
# Keys under which the state of a training run may hold the tensors.
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_FLOATS = ("<f8", "<f4", "<f2", "bfloat16")


class TorchFiles(HfFiles):
    """`pytorch_model.bin`, or the shards that its index names."""

    file_names = ("pytorch_model.bin", "pytorch_model.bin.index.json")

    @classmethod
    @contextlib.contextmanager
    def open_file(cls, path: Location, copy: LocalLocation) -> Iterator[Mapping[str, StoredTensor]]:
        """See `HfFiles`."""
        with open(copy, "rb") as file:
            archive = _Archive(path, file)
            yield {
                name: StoredTensor(tensor.size, functools.partial(archive.read, name, tensor))
                for name, tensor in archive.tensors().items()
            }


class _Archive:
    """An open zip archive of `torch.save`."""

    def __init__(self, path: Location, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        entries = _list_entries(path, file)
        pickles = [name for name in entries if name.split("/")[1:] == [_PICKLE]]
        if len(pickles) != 1:
            raise _other_format(path, "a zip archive of another format", "torch.load({path})")
        folder = pickles[0].removesuffix(_PICKLE)
        self._entries = {name.removeprefix(folder): entry for name, entry in entries.items()}
        if any(name.startswith(_SCRIPT) for name in self._entries):
            load = "torch.jit.load({path}, map_location='cpu').state_dict()"
            raise _other_format(path, "a TorchScript archive", load)

    def tensors(self) -> dict[str, TensorView]:
        """Returns the tensors by name, and checks that the archive holds their storages."""
        if _BYTE_ORDER in self._entries and self._whole(_BYTE_ORDER, _MAX_WORD) != b"little":
            raise InputError(self._path, "little-endian numbers", "another byte order")
        try:
            content = read_pickle(self._whole(_PICKLE, _MAX_PICKLE_BYTES))
        except PickleError as error:
            hint = "no code of it was run; use a safetensors file of the model"
            raise InputError(self._path, _FORMAT, str(error), hint) from error
        tensors = dict(_named_tensors(content))
        if not tensors:
            raise self._refuse_content(content)
        for name, tensor in tensors.items():
            self._expect_stored(name, tensor)
        return tensors

    def read(self, name: str, tensor: TensorView) -> np.ndarray:
        """Returns a tensor's values in float32."""
        storage, offset = tensor.storage, tensor.offset
        expect_floats(self._path, name, storage.dtype, storage.dtype in _FLOATS)
        dtype = np.dtype(storage.dtype)
        if not math.prod(tensor.size):
            return np.zeros(tensor.size, np.float32)
        # A dimension of one element may have any stride.
        strides = [step if n > 1 else 0 for n, step in zip(tensor.size, tensor.stride, strict=True)]
        spans = ((n - 1) * step for n, step in zip(tensor.size, strides, strict=True))
        count = (1 + sum(spans)) * dtype.itemsize
        content = self._part(f"data/{storage.key}", offset * dtype.itemsize, count)
        view = np.ndarray(
            tensor.size, dtype, content, strides=[step * dtype.itemsize for step in strides]
        )
        return np.array(view, np.float32, order="C")

    def _refuse_content(self, content: Any) -> InputError:
        if isinstance(content, dict):
            for name in _NESTED:
                if dict(_named_tensors(content.get(name))):
                    load = f"torch.load({{path}}, map_location='cpu', weights_only=True)['{name}']"
                    return _other_format(self._path, f"tensors in the entry {name!r}", load)
        return InputError(self._path, _FORMAT, f"a {type(content).__name__} without tensors")

    def _expect_stored(self, name: str, tensor: TensorView) -> None:
        storage = tensor.storage
        entry = self._entries.get(f"data/{storage.key}")
        size = storage.numel * np.dtype(storage.dtype).itemsize
        if entry is None or entry.file_size != size:
            received = "no such entry" if entry is None else entry.file_size
            where = f"{self._path}: {one_line(name)}"
            raise InputError(where, f"{size} bytes in data/{one_line(storage.key)}", received)

    def _whole(self, name: str, most: int) -> bytes:
        """Returns the content of a small entry."""
        size = self._entries[name].file_size
        if size > most:
            raise InputError(f"{self._path}: {name}", f"at most {most} bytes", size)
        return self._part(name, 0, size)

    def _part(self, name: str, start: int, size: int) -> bytes:
        """Returns bytes of an entry, which must be uncompressed in the file."""
        entry = self._entries[name]
        where = f"{self._path}: {one_line(name)}"
        is_plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not is_plain or entry.compress_size != entry.file_size:
            expected = "an uncompressed entry, as torch.save writes it"
            raise InputError(where, expected, "a compressed or encrypted entry")
        # The offset is negative if the beginning of the archive is missing.
        header = b"" if entry.header_offset < 0 else self._at(entry.header_offset, _HEADER_BYTES)
        if len(header) == _HEADER_BYTES:
            magic, *lengths = _LOCAL_HEADER.unpack(header)
            first = entry.header_offset + _HEADER_BYTES + sum(lengths)
            if magic == _LOCAL_MAGIC and first + entry.file_size <= self._size:
                return self._at(first + start, size)
        raise InputError(where, f"{entry.file_size} bytes in the file", "a damaged entry")

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)


def _list_entries(path: Location, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries of a zip archive without reading their content."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(path, _FORMAT, f"a damaged archive ({one_line(str(error))})") from error
    file.seek(0)
    if file.read(len(_LOCAL_MAGIC)) == _LOCAL_MAGIC:
        raise InputError(path, _FORMAT, "a truncated archive", "download it again")
    load = "torch.load({path}, map_location='cpu', weights_only=True)"
    raise _other_format(path, "a file of torch before 1.6, or another file", load)


def _other_format(path: Location, received: str, load: str) -> InputError:
    """Returns the error for a file that torch can convert to the supported format."""
    name = repr(str(path))
    code = f"import torch; torch.save({load.format(path=name)}, {name})"
    return InputError(path, _FORMAT, received, f'convert it with torch: python -c "{code}"')


def _named_tensors(content: Any) -> Iterator[tuple[str, TensorView]]:
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, TensorView):
            yield name, value
