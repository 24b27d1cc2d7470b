"""The beginning of a NumPy file: what array follows, found without trusting it."""

from typing import BinaryIO

import numpy as np


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the header of a `.npy` file of version 1; the array itself follows.

    Returns:
        the array's shape and dtype, as the file says.

    Raises:
        ValueError: it is no such header.
    """
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # A header is a Python literal: its parser has errors of many kinds for what is none.
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{type(error).__name__}: {reason}") from error
    return shape, dtype
