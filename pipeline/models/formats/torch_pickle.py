"""The pickle inside a file of `torch.save`, read without running anything of it.

A pickle is a program that may call any function. This interpreter knows the few instructions
that a dictionary of tensors consists of, and calls nothing: of the functions that the pickle
names it only knows what they would make.
"""

import dataclasses
import pickletools
from typing import Any

_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# The storages: element types that NumPy knows, little-endian.
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

# Values that wait for their container: Python writes containers in batches of a thousand.
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
# Their argument is their value.
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """A pickle that holds something else than tensors by their names, or is damaged."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A function or a class that the pickle names; it is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where numbers lie.

    Attributes:
        key: the name of the file's entry.
        dtype: NumPy's name of the element type.
        numel: elements.
    """

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor: some elements of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(content: bytes) -> Any:
    """Returns what a pickle holds: `dict`, `list`, `tuple`, `TensorView` and plain values.

    Raises:
        PickleError: it names another function, or is no pickle of tensors.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.execute(opcode.name, argument)
        return machine.pop()
    except PickleError:
        raise
    # What pickletools raises for wrong bytes, and the machine for an empty stack.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError("a damaged pickle") from error


class _Machine:
    """Executes the instructions of a pickle, none of which calls anything."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Returns the topmost value and removes it."""
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
        """Executes the instructions that name things and make things."""
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
            # The attributes of a state dictionary: versions of its parts.
            if not (isinstance(self.pop(), dict) and isinstance(self._stack[-1], dict)):
                raise PickleError("a pickle that sets the state of another object")
        else:
            raise PickleError(f"a pickle with the instruction {name}")

    def _take(self, start: int) -> list[Any]:
        """Returns the values from a place of the stack on, and removes them."""
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
        raise PickleError(f"a pickle that names {shown}, which is no part of a tensor")
    return _Global(name)


def _add_items(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        # The hash of nested tuples may take for ever.
        if not isinstance(key, str | int):
            raise PickleError("a pickle with a key that is no name")
        target[key] = value


def _make(function: Any, arguments: Any) -> Any:
    """Returns what a function would make of arguments."""
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
    raise PickleError(f"a pickle that calls {name or 'what is no function'} with other arguments")


def _view(
    storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> TensorView:
    """Returns a tensor whose elements are all in its storage, each once."""
    numbers = (offset, *size, *stride)
    is_plain = len(size) == len(stride) <= _MAX_DIMENSIONS and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )
    if not is_plain:
        raise PickleError("a pickle with a tensor whose size or strides are no counts")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += (length - 1) * step
    if count and (count > storage.numel or last >= storage.numel):
        raise PickleError("a pickle with a tensor that leaves its storage")
    return TensorView(storage, offset, size, stride)


def _find_storage(identifier: Any) -> Storage:
    """Returns the storage that a persistent id names."""
    match identifier:
        case ("storage", _Global(name), str(key), str(), int(numel)) if name in _STORAGES:
            if 0 <= numel < 2**63:
                return Storage(key, _STORAGES[name], numel)
    raise PickleError("a pickle with a storage of an unknown form")
