"""What a transform is: it looks at a tensor block by block, then gives each block new values, with some loss.

Rule: new values are exact in the tensor's own dtype, so files keep their dtype. A tensor that a transform cannot treat
(one with NaN or inf, an empty one, one of integers) is left alone, and the reason said. What came in is not written to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfs.transforms.blocks import Block, Tensor, of_array
from modelfs.transforms.dtypes import BITS, Values, encode, name_of

Pieces: TypeAlias = Mapping[str, npt.NDArray[Any]]
_NO_ARRAYS: Pieces = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tensors that --native-dtype stores instead: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Fitted(Protocol):
    """A transform that knows its tensor. It holds no block, may be pickled, and gives the same for the same block."""

    @property
    def bits(self) -> float:
        """Bits a weight that the method itself asks for, with scales, codebooks and bitmaps, before any codec."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """What to store as a small dtype: the suffix to the tensor's name, "" for the codes; empty where nothing."""

    def apply(self, block: Block) -> Values:
        """New values of the block's shape and float type; block.values itself where nothing changes."""

    def encode(self, block: Block) -> Pieces:
        """By the suffixes of parts, what the block adds to each: one after the other, in order, they are its elements.

        BF16 and F8_E4M3 as their bits. What a tensor has once comes with its first block.
        """


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Why a transform does not touch a tensor. As a Fitted it returns what comes in."""

    reason: str
    bits: float
    parts: Mapping[str, Part] = field(default_factory=dict)

    def apply(self, block: Block) -> Values:
        return block.values

    def encode(self, block: Block) -> Pieces:
        return _NO_ARRAYS


class Transform(Protocol):
    @property
    def name(self) -> str:
        """For reports: the method with what differs from its defaults."""

    @property
    def unit(self) -> int:
        """Blocks are cut at multiples of it along a row."""

    def fit(self, tensor: Tensor) -> Fitted | LeftAlone:
        """Reads all of the tensor, once or a few times, in blocks."""


@dataclass(frozen=True, slots=True)
class Extent:
    """least, most: of all elements. largest: of their magnitudes."""

    count: int
    least: float
    most: float

    @property
    def largest(self) -> float:
        return max(-self.least, self.most)


def extent_of(tensor: Tensor, bits: float) -> Extent | LeftAlone:
    """bits: what the transform will ask for; nobody gains where the dtype has no more."""
    own = BITS[tensor.dtype]
    if bits >= own:
        return LeftAlone(f"{tensor.dtype} has no more than {own} bits", own)
    count, least, most = math.prod(tensor.shape), math.inf, -math.inf
    if not count:
        return LeftAlone("empty", own)
    for block in tensor.blocks(1):
        # both propagate NaN, and Python's min and max would not
        low, high = float(block.values.min()), float(block.values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return LeftAlone("NaN or inf in it", own)
        least, most = min(least, low), max(most, high)
    return Extent(count, least, most)


@dataclass(frozen=True, slots=True)
class Transformed:
    """values: of the shape, dtype and byte order that came in. native: the parts by their suffixes, if asked for.

    left_alone: the reason why values are what came in, or None.
    """

    values: npt.NDArray[Any]
    bits: float
    native: Pieces
    left_alone: str | None


def transform_array(transform: Transform, array: npt.NDArray[Any], *, dtype: str | None = None,
                    native: bool = False) -> Transformed:
    """A whole tensor in memory; array is not written to.

    dtype: what array's elements are stored as, where that is not numpy's: "BF16" or "F8_E4M3", as unsigned integers
    with their bits or as floats. Beside array and the result it needs at most 96 MiB, however large array is;
    with native the parts, twice for a moment.
    """
    dtype = dtype or name_of(array.dtype)
    if dtype is None or dtype not in BITS:
        return Transformed(array, 8.0 * array.dtype.itemsize, _NO_ARRAYS, "not a float dtype that transforms know")
    tensor = of_array(array, dtype)
    fitted = transform.fit(tensor)
    if isinstance(fitted, LeftAlone):
        return Transformed(array, fitted.bits, _NO_ARRAYS, fitted.reason)
    values = np.empty(array.shape, array.dtype)
    flat = values.reshape(-1)
    pieces: dict[str, list[npt.NDArray[Any]]] = {suffix: [] for suffix in fitted.parts}
    for block in tensor.blocks(transform.unit):
        new = fitted.apply(block).reshape(-1)
        flat[block.start:block.start + new.size] = encode(new, dtype) if array.dtype.kind == "u" else new
        if native:
            for suffix, piece in fitted.encode(block).items():
                pieces[suffix].append(piece)
    arrays = {suffix: np.concatenate(pieces[suffix]).reshape(part.shape)
              for suffix, part in fitted.parts.items()} if native else _NO_ARRAYS
    return Transformed(values, fitted.bits, arrays, None)
