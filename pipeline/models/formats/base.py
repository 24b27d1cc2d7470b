"""The interface of a format of weights: finding, listing and reading its files."""

import abc
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from pipeline.base.location import Location
from pipeline.models.weight_names import Shape


class WeightFiles(abc.ABC):
    """A model's weights in the files of one format.

    A subclass is listed in `formats.FORMATS`. Its constructor opens the files that `find`
    returns.

    Attributes:
        layout: the layout of names and shapes, `weight_names.HF` or `TF1`.
        file_names: the names that `find` looks for, for messages.
        shapes: the shape of every tensor, by its name in the files.

    Raises:
        InputError: the files cannot be read.
    """

    layout: ClassVar[str]
    file_names: ClassVar[tuple[str, ...]]
    shapes: dict[str, Shape]

    @abc.abstractmethod
    def __init__(self, files: tuple[Location, ...]) -> None: ...

    @classmethod
    @abc.abstractmethod
    def find(cls, location: Location) -> tuple[Location, ...]:
        """Returns the files of a model directory or of a checkpoint's prefix; () without any.

        Raises:
            InputError: some of the files are missing.
        """

    @abc.abstractmethod
    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Returns tensors, float32, by their names in the files.

        Raises:
            InputError: a tensor cannot be read, or its values are not floats.
        """
