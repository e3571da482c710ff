"""Which tensors lie in the storages of a file that torch.save wrote: their names, dtypes, shapes and places.

Rule: the pickle is read for its structure and nothing in it is run: whatever it names becomes an inert record. Only
tensors that lie in their storage without gaps are told; others are said to be strided.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modelfs.errors import Malformed

_DTYPES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
           "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
           "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
           "ByteStorage": "U8", "BoolStorage": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
           "BOOL": 1, "U16": 2, "U32": 4, "U64": 8}
_HIDDEN = frozenset({"_parameters", "_buffers", "_modules"})
_MOST_BYTES = 64 << 20
_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """storage: the record's number under data/. offset, length: bytes in it.

    laid_out: the shape as the elements lie in memory, which is another order of axes for a transposed tensor; None for
    a strided one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    laid_out: tuple[int, ...] | None
    storage: str
    offset: int
    length: int


def read_tensors(data: bytes, where: str) -> list[TorchTensor]:
    """data: the record data.pkl. In the order of the pickle; shared ones again and again. Raises Malformed."""
    try:
        _check(data)
        root = _Reader(io.BytesIO(data)).load()
        return [tensor for name, view in _named(root) if (tensor := view.tensor(name)) is not None]
    except Malformed:
        raise
    except Exception as error:  # a pickle that is damaged can fail in any way; it cannot do anything
        raise Malformed("a pickle that cannot be read", where=where, why=f"{type(error).__name__}: {error}") from error


def _check(data: bytes) -> None:
    """Memo numbers that are far apart would have the C reader reserve room for all between."""
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{len(data)} bytes of structure")
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError("a memo number beyond its bytes")


class _Inert:
    """Stands for any class and any object of one. state: what BUILD gave it."""

    state: object
    items: list[tuple[object, object]]

    def __new__(cls, *_: object, **__: object) -> _Inert:
        made = super().__new__(cls)
        made.state, made.items = None, []
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))

    def append(self, value: object) -> None:
        self.items.append((len(self.items), value))

    def extend(self, values: Iterable[object]) -> None:
        for value in values:
            self.append(value)

    def add(self, value: object) -> None:
        self.append(value)

    def __call__(self, *_: object, **__: object) -> _Inert:
        return _Inert()


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class _View:
    """start, strides: in elements."""

    storage: _Storage
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self, name: str) -> TorchTensor | None:
        width = _WIDTHS.get(self.dtype)
        if width is None:
            return None
        count = math.prod(self.shape)
        return TorchTensor(name, self.dtype, self.shape, _laid_out(self.shape, self.strides), self.storage.key,
                           self.start * width, count * width)


@dataclass(frozen=True, slots=True)
class _DType:
    name: str


class _Reader(pickle.Unpickler):
    """Every global is a stand-in made here, so no code but this module's can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return dict
        if module == "torch._utils":
            return {"_rebuild_tensor_v2": _rebuild_v2, "_rebuild_tensor_v3": _rebuild_v3,
                    "_rebuild_parameter": _rebuild_parameter,
                    "_rebuild_parameter_with_state": _rebuild_parameter}.get(name, _Inert)
        if module == "torch" and name.endswith("Storage"):
            return _DType(_DTYPES.get(name, name))
        if module == "torch" and name in _DTYPES:
            return _DType(_DTYPES[name])
        return _Inert

    def persistent_load(self, pid: Any) -> object:
        kind, dtype, key = pid[:3]
        if kind != "storage":
            raise ValueError(f"an outside object {kind!r}")
        return _Storage(dtype.name if isinstance(dtype, _DType) else "", str(key))


def _rebuild_v2(storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _View:
    return _view(storage, storage.dtype, start, shape, strides)


def _rebuild_v3(storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...], _grad: object,
                _hooks: object, dtype: object, *_: object) -> _View:
    return _view(storage, dtype.name if isinstance(dtype, _DType) else "", start, shape, strides)


def _rebuild_parameter(view: object, *_: object) -> object:
    return view


def _view(storage: _Storage, dtype: str, start: int, shape: Sequence[int], strides: Sequence[int]) -> _View:
    numbers = (start, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or \
            not all(type(each) is int and each >= 0 for each in numbers):
        raise ValueError("a tensor of no shape")
    return _View(storage, dtype, start, tuple(shape), tuple(strides))


def _laid_out(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    if 0 in shape:
        return shape
    # strides of axes of one element mean nothing
    axes = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -strides[axis])
    step = 1
    for axis in reversed(axes):
        if strides[axis] != step:
            return None
        step *= shape[axis]
    return shape if axes == sorted(axes) else tuple(shape[axis] for axis in axes)


def _named(root: object) -> Iterator[tuple[str, _View]]:
    """In order, by the keys that lead to them, as a state_dict's names are."""
    waiting: list[tuple[str, object, int]] = [("", root, 0)]
    seen: set[int] = set()
    while waiting:
        name, found, depth = waiting.pop()
        if isinstance(found, _View):
            yield name, found
            continue
        if id(found) in seen or depth > _DEEPEST:
            continue
        if isinstance(found, dict | list | tuple | _Inert):
            seen.add(id(found))
        below: list[tuple[object, object]] = []
        if isinstance(found, dict):
            below = list(found.items())
        elif isinstance(found, list | tuple):
            below = list(enumerate(found))
        elif isinstance(found, _Inert):
            state = found.state
            below = list(state.items()) if isinstance(state, dict) else []
            below += found.items
        for key, value in reversed(below):
            path = name if key in _HIDDEN else f"{name}.{key}" if name else str(key)
            waiting.append((path, value, depth + 1))
