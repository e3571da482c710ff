"""Columns: named numeric arrays in one safetensors container, read as views without a copy.

Rule: what `parse` returns is within the bytes given; every getter checks type and shape, so whoever uses a
column can index it without looking again. (Container: github.com/huggingface/safetensors, "Format".)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import Malformed

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"),
                                     "U64": np.dtype("<u8"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 1 << 20
_MAX_TEXTS = 0xFFFF


def serialise(columns: Mapping[str, NDArray[Any]], scalars: Mapping[str, str | int]) -> bytes:
    """The container's bytes: the same for the same values. Widest types first, so that views are aligned."""
    order = sorted(columns, key=lambda name: (-columns[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {key: str(value) for key, value in scalars.items()}}
    at, parts = 0, []
    for name in order:
        column = np.ascontiguousarray(columns[name])
        raw = column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {"data_offsets": [at, at + len(raw)], "dtype": _NAMES[column.dtype.newbyteorder("<")],
                        "shape": list(column.shape)}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


@dataclass(frozen=True, slots=True)
class Columns:
    """what: names the object in messages."""

    what: str
    arrays: Mapping[str, NDArray[Any]]
    scalars: Mapping[str, str]

    def get(self, name: str, dtype: str, *tail: int, rows: int | None = None) -> NDArray[Any]:
        """The column as an array of shape [n, *tail]; n must be rows where given. Raises Malformed."""
        array = self.arrays.get(name)
        if array is None:
            raise Malformed(self.what, why=f"column {name} is missing")
        if array.dtype != _DTYPES[dtype] or array.shape[1:] != tail or array.ndim != 1 + len(tail):
            raise Malformed(self.what, why=f"column {name} is {array.dtype} {array.shape}, not {dtype} [n, {tail}]")
        if rows is not None and len(array) != rows:
            raise Malformed(self.what, why=f"column {name} has {len(array)} rows, not {rows}")
        return array

    def texts(self, name: str) -> list[str]:
        """A column of short names, kept as one blob with a newline behind each. Raises Malformed."""
        raw = self.get(name, "U8").tobytes()
        if (raw and not raw.endswith(b"\n")) or raw.count(b"\n") > _MAX_TEXTS:
            raise Malformed(self.what, why=f"column {name} is cut short, or holds more than {_MAX_TEXTS} names")
        try:
            blob = raw.decode()
        except UnicodeDecodeError as error:
            raise Malformed(self.what, why=f"column {name} is not UTF-8") from error
        return blob.split("\n")[:-1]


def texts_column(texts: list[str]) -> U8:
    return np.frombuffer("".join(f"{text}\n" for text in texts).encode(), np.uint8)


def parse(data: bytes | memoryview, what: str) -> Columns:
    """Views into data. Columns of types not known here are left out. Raises Malformed."""
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or not 2 <= length <= min(_MAX_HEADER, len(view) - 8):
        raise Malformed(what, why="not a column container, or cut short")
    try:
        header = json.loads(bytes(view[8:8 + length]))
        scalars = header.pop("__metadata__", {})
        body, arrays, end = view[8 + length:], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            shape = entry["shape"]
            if start != end or stop < start or stop > len(body):
                raise ValueError(f"column {name} does not follow the one before")
            end = stop
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                continue
            if any(not isinstance(n, int) or n < 0 for n in shape) or prod(shape) * dtype.itemsize != stop - start:
                raise ValueError(f"column {name} has shape {shape} in {stop - start} bytes")
            arrays[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
        if end != len(body):
            raise ValueError("bytes beyond the last column")
        if not all(isinstance(value, str) for value in scalars.values()):
            raise ValueError("a scalar that is no string")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Malformed(what, why=str(error)[:200] or type(error).__name__) from error
    return Columns(what, arrays, scalars)


def ids_column(ids: list[bytes] | list[Any]) -> U8:
    """[n, 32] of n digests."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
