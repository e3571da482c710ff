"""A tensor as transforms see it: blocks of rows that can be read again and again, never the whole at once.

Rule: a block holds whole rows, or a part of one row that begins and ends at a multiple of the unit asked for (or at the
row's end), so what is computed in groups along a row comes out the same however a tensor is cut. Blocks come in the
order of the elements, and what they share memory with is never written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from modelfs.transforms.dtypes import Buffer, Values, decode, decode_array, float_of, stored_as

BLOCK_ELEMENTS = 1 << 20
"""At most so many in a block, rows permitting: 4 MiB as float32. Smaller ones cost k-means' histogram more."""


@dataclass(frozen=True, slots=True)
class Block:
    """start: index of its first element in the tensor, counted as the file does. values: rows by columns; read only."""

    start: int
    values: Values


class Tensor(Protocol):
    """dtype: safetensors' name, one of dtypes.BITS: what the values are stored as before and after."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def blocks(self, unit: int) -> Iterator[Block]:
        """All elements; called again, the same again."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A tensor as rows: lead are the axes that number the rows, columns the elements of a row.

    A row is the last axis. Where that is not a multiple of the unit and the tensor has more than two axes, all axes but
    the first make a row: groups along a convolution's last axis would have three elements.
    """

    lead: tuple[int, ...]
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...], unit: int) -> Geometry:
        if not shape:
            return cls((), 1)
        if len(shape) > 2 and shape[-1] % unit:
            return cls(shape[:1], math.prod(shape[1:]))
        return cls(shape[:-1], shape[-1])

    @property
    def rows(self) -> int:
        return math.prod(self.lead)

    def groups(self, size: int) -> int:
        """Groups of size elements in a row; the last may be shorter."""
        return -(-self.columns // size)


def cuts(shape: tuple[int, ...], unit: int) -> Iterator[tuple[int, int, int]]:
    """start, rows and columns of each block."""
    geometry = Geometry.of(shape, unit)
    rows, columns = geometry.rows, geometry.columns
    if not rows * columns:
        return
    if columns <= BLOCK_ELEMENTS:
        at_once = BLOCK_ELEMENTS // columns
        for row in range(0, rows, at_once):
            yield row * columns, min(at_once, rows - row), columns
        return
    step = max(1, BLOCK_ELEMENTS // unit) * unit
    for row in range(rows):
        for column in range(0, columns, step):
            yield row * columns + column, 1, min(step, columns - column)


@dataclass(frozen=True, slots=True)
class ReadTensor:
    """read: (start, count) → these elements as one row of float32 or float64."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Values]

    def blocks(self, unit: int) -> Iterator[Block]:
        for start, rows, columns in cuts(self.shape, unit):
            values = self.read(start, rows * columns).reshape(rows, columns).view()
            values.flags.writeable = False
            yield Block(start, values)


def of_bytes(read: Callable[[int, int], Buffer], dtype: str, shape: tuple[int, ...]) -> ReadTensor:
    """read: (offset, length) in bytes from the tensor's start → these bytes, little-endian, as a file has them."""
    width = stored_as(dtype).itemsize
    return ReadTensor(dtype, shape, lambda start, count: decode(read(start * width, count * width), dtype))


def of_array(array: npt.NDArray[Any], dtype: str) -> ReadTensor:
    """array: floats of either byte order and any strides, or the bits of dtype as unsigned integers."""
    flat = array.reshape(-1) if array.flags.c_contiguous else None

    def read(start: int, count: int) -> Values:
        # flatiter copies only what is asked for; reshape would copy all of a strided view
        part = array.flat[start:start + count] if flat is None else flat[start:start + count]
        return decode_array(part, dtype) if part.dtype.kind == "u" else part.astype(float_of(dtype), copy=False)
    return ReadTensor(dtype, array.shape, read)

