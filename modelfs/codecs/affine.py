"""Chunks of quantised weights: in groups of elements, whole numbers times the group's scale, rounded.

Stored: the scales' kind (0 fp16, 1 bf16, 2 fp32; u8), elements a group (u32, a power of two from 16 to 4096), and five
parts: for each group its scale and its lowest multiple (i16), for each element its multiple modulo 256, for each
element whose multiple is 0 whether it is -0.0, and the elements of groups that are no such products, whose scale is
NaN; then what is left after the last whole element.
Rule: the scales are found anew from the elements (scales.py), and every group is computed and compared before it is
stored as products.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelfs.codecs.blocks import Bytes
from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.floats import BF16, F16, F32, Float32s, FloatKind
from modelfs.codecs.parts import RAW, Methods, Numbers, apart, joined, numbers_of
from modelfs.codecs.plain import RawCodec
from modelfs.codecs.scales import GROUPS, MOST_CODES, Solution, best_group, may_be_products, solve

SCALES: Final = (F16, BF16, F32)
_HEAD = struct.Struct("<BI")
_NARROW = -128
# Of the groups so many may be something else, say a bias between two matrices.
_MOST_OTHERS = 0.25
# Elements computed at a time: temporaries stay in the processor's cache.
_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True)
class _Groups:
    """scales and lowest for each group, codes for each element; the last group may have fewer than size."""

    size: int
    scales: Float32s
    lowest: npt.NDArray[np.int16]
    codes: Bytes


class AffineCodec:
    """kind: of the elements. numbers: the methods of scales and such; codes: those of the multiples."""

    def __init__(self, name: str, kind: FloatKind, numbers: dict[int, Codec], codes: dict[int, Codec]) -> None:
        self.name: str = name
        self._kind = kind
        self._numbers = Methods({RAW: RawCodec(), **numbers})
        self._codes = Methods({RAW: RawCodec(), **codes})

    def fits(self, data: memoryview) -> bool:
        return may_be_products(numbers_of(data, self._kind.width), self._kind)

    def encode(self, data: memoryview) -> bytes | None:
        elements = numbers_of(data, self._kind.width)
        groups = self._groups(elements) if self.fits(data) else None
        if groups is None:
            return None
        others = _elements_of(np.isnan(groups.scales), groups, len(elements))
        minus = elements[groups.codes == 0] == self._kind.sign
        kind = _cheapest(groups.scales)
        parts = (self._numbers.encode(_with_nan(groups.scales, SCALES[kind])), self._numbers.encode(groups.lowest),
                 self._codes.encode(groups.codes),
                 self._numbers.encode(np.packbits(minus, bitorder="little")) if minus.any() else (RAW, b""),
                 (RAW, elements[others].tobytes()))
        stored = b"".join((_HEAD.pack(kind, groups.size), *joined(parts), data[elements.nbytes:]))
        return stored if len(stored) < len(data) else None

    def _groups(self, elements: Numbers) -> _Groups | None:
        kind, found = self._kind, best_group(elements, self._kind)
        if found is None:
            return None
        size, divisors = found
        padded = np.zeros(-(-len(elements) // size) * size, elements.dtype)
        padded[:len(elements)] = elements
        rows = padded.reshape(-1, size)
        solution = solve(rows, kind, divisors)
        codes = solution.multiples.astype(np.uint8)
        lowest = np.minimum(solution.multiples.min(axis=1), 0)
        lowest[(lowest >= _NARROW) & (solution.multiples.max(axis=1) < _NARROW + MOST_CODES)] = _NARROW
        scales = np.full(len(rows), np.nan, np.float32)
        for proposed in _proposals(solution):
            at = np.flatnonzero(np.isnan(scales) & (solution.low <= proposed) & (proposed <= solution.high))
            for start in range(0, len(at), _BLOCK // size):
                some = at[start:start + _BLOCK // size]
                again = _products(codes[some], lowest[some], proposed[some], kind)
                again[(codes[some] == 0) & (rows[some] == kind.sign)] = kind.sign
                proved = some[(again == rows[some]).all(axis=1)]
                scales[proved] = proposed[proved]
        others = np.isnan(scales)
        if np.count_nonzero(others) > _MOST_OTHERS * len(others):
            return None
        lowest[others], codes[others] = _NARROW, 0
        return _Groups(size, scales, lowest, codes.reshape(-1)[:len(elements)])

    def decode(self, stored: memoryview, out: memoryview) -> None:
        width = self._kind.width
        count = len(out) // width
        whole = count * width
        end = len(stored) - (len(out) - whole)
        if not count or end < _HEAD.size:
            raise CodecError("too short for products")
        code, size = _HEAD.unpack_from(stored)
        if code >= len(SCALES) or size not in GROUPS:
            raise CodecError(f"scales of kind {code} for groups of {size}")
        scales, lowest, codes, minus, others = apart(stored[_HEAD.size:end], 5)
        groups = _Groups(size, self._scales(*scales, SCALES[code], -(-count // size)),
                         self._lowest(*lowest, -(-count // size)), self._codes.decode(*codes, count))
        target: Numbers = np.frombuffer(out[:whole], f"<u{width}")
        _fill(groups, self._kind, target)
        self._set_minus(*minus, groups.codes, target)
        self._set_others(*others, groups, target)
        out[whole:] = stored[end:]

    def _scales(self, method: int, stored: memoryview, kind: FloatKind, count: int) -> Float32s:
        scales = kind.single(self._numbers.decode(method, stored, count * kind.width).view(f"<u{kind.width}"))
        if bool((np.isinf(scales) | (scales < 0)).any()):
            raise CodecError("a scale that is infinite or negative")
        return scales

    def _lowest(self, method: int, stored: memoryview, count: int) -> npt.NDArray[np.int16]:
        lowest = self._numbers.decode(method, stored, count * 2).view("<i2")
        if bool(((lowest > 0) | (lowest <= -MOST_CODES)).any()):
            raise CodecError("a group whose multiples begin above 0 or below -255")
        return lowest

    def _set_minus(self, method: int, stored: memoryview, codes: Bytes, target: Numbers) -> None:
        if not len(stored):
            return
        zeros = codes == 0
        count = int(np.count_nonzero(zeros))
        bits = self._numbers.decode(method, stored, -(-count // 8))
        zeros[zeros] = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        target[zeros] = self._kind.sign

    def _set_others(self, method: int, stored: memoryview, groups: _Groups, target: Numbers) -> None:
        others = _elements_of(np.isnan(groups.scales), groups, len(target))
        if method != RAW or len(stored) != int(np.count_nonzero(others)) * self._kind.width:
            raise CodecError("the groups without a scale are not all there")
        target[others] = np.frombuffer(stored, target.dtype)


def _elements_of(which: npt.NDArray[np.bool_], groups: _Groups, count: int) -> npt.NDArray[np.bool_]:
    return np.repeat(which, groups.size)[:count]


def _proposals(solution: Solution) -> list[Float32s]:
    """For each group numbers between low and high, those that take the fewest bits first: fp16, bf16, a fp32 whose
    last byte is 0, any. What lies on an edge of the interval may yet round to the wrong side."""
    middle = ((solution.low + solution.high) / 2).astype(np.float32)
    short = (middle.view(np.uint32) + np.uint32(0x80) & np.uint32(0xFFFFFF00)).view(np.float32)
    return [*(kind.single(kind.rounded(middle)) for kind in (F16, BF16)), short, middle]


def _cheapest(scales: Float32s) -> int:
    known = np.nan_to_num(scales)
    return next(code for code, kind in enumerate(SCALES) if np.array_equal(kind.single(kind.rounded(known)), known))


def _with_nan(scales: Float32s, kind: FloatKind) -> Numbers:
    bits = kind.rounded(np.nan_to_num(scales))
    bits[np.isnan(scales)] = kind.infinity + 1
    return bits


def _products(codes: Bytes, lowest: npt.NDArray[np.int16], scales: Float32s, kind: FloatKind) -> Numbers:
    """codes: [g, size]; the others [g]. The products' bits, [g, size]."""
    multiples: npt.NDArray[Any] = codes.view(np.int8)
    if (lowest != _NARROW).any():
        from_low = codes - lowest.astype(np.uint8)[:, None]
        multiples = from_low + lowest[:, None]
    products: Float32s = multiples * scales[:, None]
    return kind.rounded(products)


def _fill(groups: _Groups, kind: FloatKind, out: Numbers) -> None:
    """The groups' products; zeros for a group without a scale."""
    size, whole = groups.size, len(out) // groups.size
    scales = np.nan_to_num(groups.scales)
    step = _BLOCK // size
    for first in range(0, whole, step):
        last = min(first + step, whole)
        block = slice(first * size, last * size)
        out[block] = _products(groups.codes[block].reshape(-1, size), groups.lowest[first:last], scales[first:last],
                               kind).reshape(-1)
    rest = groups.codes[whole * size:]
    if len(rest):
        out[whole * size:] = _products(rest[None], groups.lowest[whole:], scales[whole:], kind)[0]
