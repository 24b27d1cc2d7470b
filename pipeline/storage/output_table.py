"""The file of the teacher's output layer in a cache of head states.

`output_table.safetensors` holds `table`, float16 [V, E], and `bias`, float32 [V]; see
`pipeline.storage.codecs.states`. The manifest records its size and checksum.
"""

from collections.abc import Callable

import numpy as np

from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage.codecs.states import OutputTable
from pipeline.storage.manifest import OUTPUT_TABLE_FILE, TableInfo

_TABLE, _BIAS = "table", "bias"


def ensure_table(
    directory: Location,
    vocab_size: int,
    state_size: int,
    *,
    read_layer: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> TableInfo:
    """Writes the file of a teacher's output layer, unless it exists.

    Args:
        directory: of the cache.
        vocab_size: V.
        state_size: E.
        read_layer: returns the table, float32 [V, E], and the bias, float32 [V].

    Returns:
        the file's size and checksum.

    Raises:
        InputError: the existing file is malformed, or a number exceeds float16.
    """
    from safetensors.numpy import save

    path = directory / OUTPUT_TABLE_FILE
    if path.is_file():
        read_table(directory, vocab_size, state_size)
    else:
        output = OutputTable.of(*read_layer())
        if not output.is_finite:
            expected = "a model whose output table has only numbers below 65,504"
            hint = "use `logit_encoding`=compact or float16, which store no output table"
            raise InputError(Setting("teacher"), expected, "larger or non-finite numbers", hint)
        path.write_whole(save({_TABLE: output.table, _BIAS: output.bias}))
    return TableInfo(file=path.name, bytes=path.stat().st_size, sha256=path.sha256())


def read_table(directory: Location, vocab_size: int, state_size: int) -> OutputTable:
    """Reads the output table of a cache.

    Raises:
        InputError: the file is missing, malformed, or holds a table of another size.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / OUTPUT_TABLE_FILE
    if not path.is_file():
        raise InputError(path, received="this file of the teacher's output table is missing")
    try:
        with safe_open(path.mirror(), framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            received = {
                name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices.items()
            }
            expected = {_TABLE: ("F16", [vocab_size, state_size]), _BIAS: ("F32", [vocab_size])}
            # Checked before tensors are read, as a malformed file may claim any size.
            if received != expected:
                text = f"{_TABLE} in F16, [{vocab_size}, {state_size}], and {_BIAS} in F32"
                raise InputError(path, text, format_value(received))
            output = OutputTable(file.get_tensor(_TABLE), file.get_tensor(_BIAS))
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        received = f"an unreadable file ({reason})"
        raise InputError(path, "a valid safetensors file", received) from error
    if not output.is_finite:
        raise InputError(path, "finite numbers", "NaN or infinity")
    return output
