"""The h5 files of `transformers`' TensorFlow models: `tf_model.h5`, single or sharded."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation, Location
from pipeline.models.formats import tf_names
from pipeline.models.formats.hf_files import HfFiles, StoredTensor, expect_floats, one_line

if TYPE_CHECKING:
    import h5py

# The maximum depth of nested groups; a model has far fewer levels.
_MAX_DEPTH = 32


class H5Files(HfFiles):
    """`tf_model.h5`, or the shards that its index names.

    Links to other files and names, data in other files and compressed data are refused. Keras
    writes none of these.
    """

    file_names = ("tf_model.h5", "tf_model.h5.index.json")

    @classmethod
    @contextlib.contextmanager
    def open_file(cls, path: Location, copy: LocalLocation) -> Iterator[Mapping[str, StoredTensor]]:
        """See `HfFiles`."""
        import h5py

        with _reading(path):
            file = h5py.File(copy, "r", locking=False)
        with file:
            with _reading(path):
                tensors = {
                    name: StoredTensor(
                        _shape(path, dataset), functools.partial(_read, path, dataset)
                    )
                    for name, dataset in _walk(path, file)
                }
            yield tf_names.to_hf(path, tensors)


def _walk(path: Location, file: "h5py.File") -> Iterator[tuple[str, "h5py.Dataset"]]:
    """Yields all datasets with their names; soft and external links are refused."""
    import h5py

    pending, seen = [("", file)], {_address(file)}
    while pending:
        prefix, group = pending.pop()
        for key in group:
            name = f"{prefix}{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                expected = "tensors in the file itself"
                raise InputError(f"{path}: {one_line(name)}", expected, type(link).__name__)
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield name, item
                continue
            if not isinstance(item, h5py.Group):
                fault = f"an object of the type {type(item).__name__}"
            elif _address(item) in seen:
                fault = "a group that occurs twice or contains itself"
            elif name.count("/") == _MAX_DEPTH:
                fault = f"groups nested more than {_MAX_DEPTH} deep"
            else:
                fault = None
            if fault is not None:
                expected = "a tree of groups of tensors"
                raise InputError(f"{path}: {one_line(name)}", expected, fault)
            seen.add(_address(item))
            pending.append((f"{name}/", item))


def _address(group: "h5py.Group") -> int:
    """Returns a group's address in its file, which does not depend on its name."""
    import h5py

    return h5py.h5o.get_info(group.id).addr


def _shape(path: Location, dataset: "h5py.Dataset") -> tuple[int, ...]:
    if dataset.shape is None:
        raise InputError(f"{path}: {one_line(dataset.name)}", "a tensor", "an empty dataset")
    return tuple(dataset.shape)


def _read(path: Location, dataset: "h5py.Dataset") -> np.ndarray:
    with _reading(path):
        name = dataset.name.lstrip("/")
        dtype: Any = dataset.dtype
        expect_floats(path, name, dtype, dtype.kind == "f" and dtype.itemsize in (2, 4, 8))
        is_plain = not dataset.is_virtual and not dataset.external
        if not is_plain or dataset.id.get_create_plist().get_nfilters():
            expected = "uncompressed numbers in the file itself"
            received = "compressed or external numbers"
            raise InputError(f"{path}: {one_line(name)}", expected, received)
        if dataset.id.get_storage_size() != dataset.size * dtype.itemsize:
            expected = f"{dataset.size * dtype.itemsize} bytes"
            received = dataset.id.get_storage_size()
            raise InputError(f"{path}: {one_line(name)}", expected, received)
        return np.asarray(dataset[()], np.float32)


@contextlib.contextmanager
def _reading(path: Location) -> Iterator[None]:
    """Replaces h5py's errors about a damaged file by an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        received = f"an unreadable file ({one_line(str(error))})"
        raise InputError(path, "a valid h5 file", received) from error
