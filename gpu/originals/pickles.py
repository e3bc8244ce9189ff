"""Reads the pickle inside a torch file without running anything.

A pickle is a program. Python's own machine for it imports and calls what the program names, and even with every name forbidden a
few bytes can make it reserve gigabytes (an index of 2**32 into its memo). This one knows plain values and, as inert descriptions,
tensors and their storages; whatever else the program names becomes an `Inert`, which keeps nothing and does nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_PICKLE_BYTES = 32 * 2**20
MAX_OPERATIONS = 1_000_000
MAX_DIMENSIONS = 8
MAX_FOREIGN = 32

STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
DTYPES = {
    "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16", "float64": "F64", "double": "F64",
    "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class PickleDamage(Exception):
    """The bytes are no pickle, not a whole one, or one that no honest program writes."""


@dataclass(frozen=True)
class Inert:
    """Stands for a class, a function or an object that is not known: only its name is left of it."""

    what: str


@dataclass(frozen=True)
class StorageRef:
    """A block of values beside the pickle. `numel` counts values of `dtype`."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """Where in a storage a tensor lies; offset and stride count values."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class PickleContent:
    """What a pickle says.

    Attributes:
        value: plain values, dicts, lists, tuples, `TensorRef`, `StorageRef`, `Inert`.
        end: position behind its last byte.
        foreign: names of what it wanted to import and was not given, at most `MAX_FOREIGN`.
    """

    value: Any
    end: int
    foreign: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """A name that this reader gives a meaning to."""

    kind: str
    dtype: str = ""


class _Mark:
    pass


_MARK = _Mark()


def read_pickle(data: bytes, start: int = 0) -> PickleContent:
    """What the pickle at `start` says.

    Raises:
        PickleDamage: it ends early, is longer than `MAX_PICKLE_BYTES`, or holds what no torch file holds.
    """
    return _Machine(data, start).run()


class _Machine:
    """Stack and memo of one pickle. Both are bounded by the number of operations, never by a number that the pickle names."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.start = self.at = start
        self.limit = min(len(data), start + MAX_PICKLE_BYTES)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.foreign: dict[str, None] = {}
        self.spent = 0

    def run(self) -> PickleContent:
        while True:
            at = self.at
            if at >= self.limit or self.spent >= MAX_OPERATIONS:
                self.charge(1)
                self.take(1)
            self.spent += 1
            self.at = at + 1
            operation = _OPERATIONS.get(self.data[at])
            if operation is None:
                raise PickleDamage(f"byte {at} is no pickle operation that torch writes")
            try:
                if operation(self):
                    return PickleContent(value=self.pop(), end=self.at, foreign=list(self.foreign))
            except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error) as error:
                raise PickleDamage(f"the operation at byte {at} makes no sense ({type(error).__name__})") from error

    def charge(self, operations: int) -> None:
        """Count work. A single operation can ask for a copy of something long, again and again."""
        self.spent += operations
        if self.spent > MAX_OPERATIONS:
            raise PickleDamage(f"it has more than {MAX_OPERATIONS} operations")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > self.limit:
            if self.limit < len(self.data):
                raise PickleDamage(f"it is longer than {MAX_PICKLE_BYTES // 2**20} MB")
            raise PickleDamage(f"it ends after {len(self.data) - self.start} bytes in the middle of something")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def line(self) -> str:
        # Only old protocols write lines, and only names and numbers.
        for length in range(1, 1 << 16):
            if self.take(1) == b"\n":
                return self.data[self.at - length : self.at - 1].decode("utf-8", "replace")
        raise PickleDamage("it holds a line of 64 KB")

    def number(self, layout: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError

    def named(self, module: str, name: str) -> Any:
        """The meaning of a global name; never an import."""
        known = _known(module, name)
        if known is not None:
            return known
        what = f"{module}.{name}"[:120]
        if len(self.foreign) < MAX_FOREIGN:
            self.foreign[what] = None
        return Inert(what)


def _known(module: str, name: str) -> _Known | None:
    if (module, name) == ("collections", "OrderedDict"):
        return _Known("dict")
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
        return _Known("storage", STORAGES[name])
    if module == "torch" and name in DTYPES:
        return _Known("dtype", DTYPES[name])
    if (module, name) == ("torch", "Size"):
        return _Known("size")
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return _Known(name.removeprefix("_rebuild_"))
    if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return _Known("parameter")
    return None


def _called(machine: _Machine, what: Any, args: Any) -> Any:
    """The inert result of calling `what`."""
    if not isinstance(what, _Known):
        return Inert(what.what if isinstance(what, Inert) else type(what).__name__)
    if not isinstance(args, tuple):
        raise TypeError
    if what.kind == "dict":
        pairs = args[0] if args and isinstance(args[0], list) else []
        machine.charge(len(pairs))
        return _dict_of(pairs)
    if what.kind == "size":
        return _counts(args[0]) if args else ()
    if what.kind == "parameter":
        return args[0]
    if what.kind.startswith("tensor"):
        storage, offset, shape, stride = args[:4]
        if not isinstance(storage, StorageRef):
            return Inert("torch.Tensor")
        dtype = storage.dtype
        if what.kind == "tensor_v3":
            dtype = args[6].dtype if isinstance(args[6], _Known) else ""
        return TensorRef(storage, dtype, _count(offset), _counts(shape), _counts(stride))
    return Inert(what.kind)


def _dict_of(pairs: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        _put(found, key, value)
    return found


def _persistent(reference: Any) -> Any:
    """torch's `("storage", class, key, location, numel)`, to which old files add a view."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage" or not isinstance(reference[1], _Known):
        return Inert("a reference that is no storage")
    if not isinstance(reference[2], str):
        raise TypeError
    if len(reference) > 5 and isinstance(reference[5], tuple):
        # A view into another storage: (its key, offset, numel). Nothing written since torch 0.4 has one.
        return Inert("torch storage view")
    return StorageRef(reference[2], reference[1].dtype, _count(reference[4]))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise ValueError
    return tuple(_count(value) for value in values)


def _put(target: Any, key: Any, value: Any) -> None:
    if not isinstance(target, dict):
        return
    if isinstance(key, str):
        target[key] = value
    elif key is None or isinstance(key, int | float):
        # As text: a hash of texts cannot be foreseen, so nobody can make a million keys collide.
        target[f"<{key!r}>"] = value


def _long(data: bytes) -> Any:
    # No size, step or count needs more than eight bytes.
    return int.from_bytes(data, "little", signed=True) if len(data) <= 8 else Inert(f"a number of {len(data)} bytes")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _op_value(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _op_number(layout: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(layout))


def _op_sized(layout: str, make: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(make(machine.take(_count(machine.number(layout)))))


def _op_tuple(count: int) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return operation


def _op_line_int(machine: _Machine) -> None:
    text = machine.line().rstrip("L")
    if text in ("00", "01"):
        machine.push(text == "01")
    else:
        machine.push(int(text) if len(text) <= 20 else Inert("a long number"))


def _op_line_text(machine: _Machine) -> None:
    text = machine.line()
    machine.push(text[1:-1] if text[:1] in ("'", '"') else text)


def _op_float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _op_append(machine: _Machine) -> None:
    value = machine.pop()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].append(value)


def _op_appends(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)


def _op_setitem(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _put(machine.stack[-1], key, value)


def _op_setitems(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    target = machine.stack[-1]
    for key, value in zip(items[::2], items[1::2], strict=True):
        _put(target, key, value)


def _op_dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push(_dict_of(list(zip(items[::2], items[1::2], strict=True))))


def _op_inert_set(machine: _Machine) -> None:
    machine.pop_to_mark()
    machine.push(Inert("set"))


def _op_additems(machine: _Machine) -> None:
    machine.pop_to_mark()


def _op_put(layout: str | None) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        index = int(machine.line()) if layout is None else machine.number(layout)
        machine.memo[index] = machine.stack[-1]

    return operation


def _op_get(layout: str | None) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.memo[int(machine.line()) if layout is None else machine.number(layout)])


def _op_memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _op_global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.named(module, name))


def _op_stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError
    machine.push(machine.named(module, name))


def _op_reduce(machine: _Machine) -> None:
    args, what = machine.pop(), machine.pop()
    machine.push(_called(machine, what, args))


def _op_newobj_ex(machine: _Machine) -> None:
    machine.pop()
    _op_reduce(machine)


def _op_inst(machine: _Machine) -> None:
    what = machine.named(machine.line(), machine.line())
    machine.push(_called(machine, what, tuple(machine.pop_to_mark())))


def _op_obj(machine: _Machine) -> None:
    what, *args = machine.pop_to_mark()
    machine.push(_called(machine, what, tuple(args)))


def _op_build(machine: _Machine) -> None:
    # The state that an object would be given, such as the `_metadata` of a state dict.
    machine.pop()
    machine.push(machine.pop())


def _op_pop(machine: _Machine) -> None:
    machine.stack.pop()


_OPERATIONS: dict[int, Callable[[_Machine], bool | None]] = {
    0x80: lambda machine: machine.take(1) and None,
    0x95: lambda machine: machine.take(8) and None,
    ord("."): lambda machine: True,
    ord("("): _op_value(_MARK),
    ord("0"): _op_pop,
    ord("1"): lambda machine: machine.pop_to_mark() and None,
    ord("2"): lambda machine: machine.push(machine.stack[-1]),
    ord("N"): _op_value(None), 0x88: _op_value(True), 0x89: _op_value(False),
    ord("I"): _op_line_int, ord("L"): _op_line_int,
    ord("J"): _op_number("<i"), ord("K"): _op_number("<B"), ord("M"): _op_number("<H"),
    0x8A: _op_sized("<B", _long), 0x8B: _op_sized("<i", _long),
    ord("F"): lambda machine: machine.push(float(machine.line())),
    ord("G"): _op_float,
    ord("S"): _op_line_text, ord("V"): _op_line_text,
    ord("T"): _op_sized("<i", _text), ord("U"): _op_sized("<B", _text),
    ord("X"): _op_sized("<I", _text), 0x8C: _op_sized("<B", _text), 0x8D: _op_sized("<Q", _text),
    ord("B"): _op_sized("<I", bytes), ord("C"): _op_sized("<B", bytes), 0x8E: _op_sized("<Q", bytes), 0x96: _op_sized("<Q", bytes),
    ord("]"): lambda machine: machine.push([]), ord("}"): lambda machine: machine.push({}), ord(")"): _op_value(()),
    0x8F: _op_value(Inert("set")), 0x90: _op_additems, 0x91: _op_inert_set,
    ord("a"): _op_append, ord("e"): _op_appends,
    ord("l"): lambda machine: machine.push(machine.pop_to_mark()),
    ord("t"): lambda machine: machine.push(tuple(machine.pop_to_mark())),
    0x85: _op_tuple(1), 0x86: _op_tuple(2), 0x87: _op_tuple(3),
    ord("d"): _op_dict, ord("s"): _op_setitem, ord("u"): _op_setitems,
    ord("p"): _op_put(None), ord("q"): _op_put("<B"), ord("r"): _op_put("<I"), 0x94: _op_memoize,
    ord("g"): _op_get(None), ord("h"): _op_get("<B"), ord("j"): _op_get("<I"),
    ord("c"): _op_global, 0x93: _op_stack_global,
    ord("R"): _op_reduce, 0x81: _op_reduce, 0x92: _op_newobj_ex, ord("i"): _op_inst, ord("o"): _op_obj, ord("b"): _op_build,
    ord("P"): lambda machine: machine.push(Inert(machine.line()[:120])),
    ord("Q"): lambda machine: machine.push(_persistent(machine.pop())),
}  # fmt: skip
