"""A reader of the pickle inside a file of `torch.save`, which runs no code of the pickle.

A pickle is a program that may call any function. This interpreter supports only the few
instructions that a dictionary of tensors needs. It calls no function that the pickle names. For
the known functions it makes an equivalent result itself.
"""

import dataclasses
import pickletools
from typing import Any

_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# Types of storages, and their element types in NumPy, little-endian.
_DTYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": "bfloat16",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}
_KNOWN = (_ORDERED_DICT, _TENSOR, _PARAMETER, *_STORAGES)

# Maximum number of values on the stack. Python writes a container in batches of 1,000 values.
_MAX_STACK = 100_000
_MAX_DIMENSIONS = 16
_IGNORED = ("PROTO", "FRAME")
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
# Instructions whose argument is the value.
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """A pickle that is damaged, or holds anything other than tensors by name."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A function or a class that the pickle names; it is never imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """An array of numbers in the file.

    Attributes:
        key: the name of the file's entry.
        dtype: NumPy's name of the element type.
        numel: the number of elements.
    """

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor as a view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(content: bytes) -> Any:
    """Returns the content of a pickle: `dict`, `list`, `tuple`, `TensorView` and plain values.

    Raises:
        PickleError: it names an unknown function, or is not a pickle of tensors.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.execute(opcode.name, argument)
        return machine.pop()
    except PickleError:
        raise
    # pickletools raises these for invalid bytes, and the machine for an empty stack.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError("a damaged pickle") from error


class _Machine:
    """A stack machine for the supported instructions of a pickle; it calls no functions."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Removes the topmost value and returns it."""
        return self._stack.pop()

    def execute(self, name: str, argument: Any) -> None:
        """Executes one instruction."""
        stack = self._stack
        if name in _IGNORED or name == "STOP":
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _TUPLES:
            self._push_tuple(len(stack) - _TUPLES[name])
        elif name == "TUPLE":
            self._push_tuple(self._marks.pop())
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
        elif name in ("APPEND", "APPENDS"):
            self._append(len(stack) - 1 if name == "APPEND" else self._marks.pop())
        else:
            self._execute_rare(name, argument)
        if len(stack) > _MAX_STACK or len(self._marks) > _MAX_STACK:
            raise PickleError("a pickle with too many values in one container")

    def _execute_rare(self, name: str, argument: Any) -> None:
        """Executes the instructions for names, calls, storages and states."""
        if name == "GLOBAL":
            module, _, attribute = argument.rpartition(" ")
            self._stack.append(_known_global(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self._stack.append(_known_global(module, attribute))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self._stack.append(_make(function, arguments))
        elif name == "BINPERSID":
            self._stack.append(_find_storage(self.pop()))
        elif name == "BUILD":
            # A state dictionary has attributes, the versions of its modules, which are ignored.
            if not (isinstance(self.pop(), dict) and isinstance(self._stack[-1], dict)):
                raise PickleError("a pickle that sets the state of another object")
        else:
            raise PickleError(f"a pickle with the instruction {name}")

    def _take(self, start: int) -> list[Any]:
        """Removes and returns all stack values at or above an index."""
        if not 0 <= start <= len(self._stack):
            raise PickleError("a damaged pickle")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push_tuple(self, start: int) -> None:
        self._stack.append(tuple(self._take(start)))

    def _append(self, start: int) -> None:
        values, target = self._take(start), self._stack[-1]
        if not isinstance(target, list):
            raise PickleError("a damaged pickle")
        target.extend(values)

    def _set_items(self, start: int) -> None:
        values, target = self._take(start), self._stack[-1]
        if not isinstance(target, dict):
            raise PickleError("a damaged pickle")
        _add_items(target, zip(values[::2], values[1::2], strict=True))


def _known_global(module: Any, attribute: Any) -> _Global:
    name = f"{module}.{attribute}" if all(isinstance(v, str) for v in (module, attribute)) else "?"
    if name not in _KNOWN:
        shown = " ".join(name.split())[:200]
        raise PickleError(f"a pickle that names {shown}, which no tensor needs")
    return _Global(name)


def _add_items(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        # Computing the hash of nested tuples may take unlimited time.
        if not isinstance(key, str | int):
            raise PickleError("a pickle with a key that is not a name")
        target[key] = value


def _make(function: Any, arguments: Any) -> Any:
    """Returns the value that a known function would return, without calling it."""
    name = function.name if isinstance(function, _Global) else None
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", ([*items],):
            pairs: dict[Any, Any] = {}
            _add_items(pairs, items)
            return pairs
        case "torch._utils._rebuild_parameter", (TensorView() as tensor, *_):
            return tensor
        case "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            int(offset),
            tuple(size),
            tuple(stride),
            *_,
        ):
            return _view(storage, offset, size, stride)
    raise PickleError(f"a pickle that calls {name or 'a value'} with unexpected arguments")


def _view(
    storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> TensorView:
    """Returns a tensor view, and checks that its elements fit in the storage."""
    numbers = (offset, *size, *stride)
    is_plain = len(size) == len(stride) <= _MAX_DIMENSIONS and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )
    if not is_plain:
        raise PickleError("a pickle with a tensor whose size or strides are invalid")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += (length - 1) * step
    if count and (count > storage.numel or last >= storage.numel):
        raise PickleError("a pickle with a tensor that exceeds its storage")
    return TensorView(storage, offset, size, stride)


def _find_storage(identifier: Any) -> Storage:
    """Returns the storage that a persistent id names."""
    match identifier:
        case ("storage", _Global(name), str(key), str(), int(numel)) if name in _STORAGES:
            if 0 <= numel < 2**63:
                return Storage(key, _STORAGES[name], numel)
    raise PickleError("a pickle with a storage of an unknown form")
