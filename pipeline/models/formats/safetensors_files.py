"""The safetensors files of a Hugging Face directory: listing, reading and writing."""

import contextlib
import errno
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the dtype bfloat16)
import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation, Location
from pipeline.models.formats import tf_names
from pipeline.models.formats.hf_files import HfFiles, StoredTensor, expect_floats, one_line

HF_WEIGHTS = "model.safetensors"

_FLOATS = ("F64", "F32", "F16", "BF16")
# Values of `format` in a file's metadata for names of TensorFlow and Flax; others mean PyTorch.
_TENSORFLOW, _FLAX = "tf", "flax"


class SafetensorsFiles(HfFiles):
    """`model.safetensors`, or the shards that its index names."""

    file_names = (HF_WEIGHTS, f"{HF_WEIGHTS}.index.json")

    @classmethod
    @contextlib.contextmanager
    def open_file(cls, path: Location, copy: LocalLocation) -> Iterator[Mapping[str, StoredTensor]]:
        """See `HfFiles`."""
        # Imported late, because benchmarks with random weights run without safetensors.
        from safetensors import safe_open

        with _reading(path):
            opened = safe_open(copy, framework="np")
        with opened as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118  (the file is not a mapping)
                with _reading(path):
                    shape = tuple(file.get_slice(name).get_shape())
                tensors[name] = StoredTensor(shape, functools.partial(_read, path, file, name))
            framework = (file.metadata() or {}).get("format")
            if framework == _FLAX:
                raise InputError(path, "tensors of PyTorch or TensorFlow", "tensors of Flax")
            yield tf_names.to_hf(path, tensors) if framework == _TENSORFLOW else tensors


def _read(path: Location, file: Any, name: str) -> np.ndarray:
    with _reading(path):
        dtype = file.get_slice(name).get_dtype()
        expect_floats(path, name, dtype, dtype in _FLOATS)
        return file.get_tensor(name).astype(np.float32)


@contextlib.contextmanager
def _reading(path: Location) -> Iterator[None]:
    """Replaces safetensors' errors about a damaged file by an `InputError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        received = f"an unreadable file ({one_line(str(error))})"
        raise InputError(path, "a valid safetensors file", received) from error


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
        before_publishing: called with the complete temporary file, before it gets its name.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with path.atomic_write() as temporary:
        try:
            # `transformers` requires this format.
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if before_publishing is not None:
            before_publishing(temporary)
