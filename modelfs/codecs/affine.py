"""Chunks of quantised weights: in groups of elements, whole numbers times the group's scale, rounded.

Stored: the scales' kind (0 fp16, 1 bf16, 2 fp32; u8), elements a group (u32, a power of two from 16 to 4096; or any
number from 16 to 65536, where 128 is added to the kind, and then how many the first group lacks, u32), and five parts:
for each group its scale and its lowest multiple (i16), for each element its multiple modulo 256, for each element whose
multiple is 0 whether it is -0.0, and the elements of groups that are no such products, whose scale is NaN; then what is
left after the last whole element.
Rule: groups and scales are found anew from the elements (grouping.py, scales.py), and every group is computed and
compared before it is stored as products.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from modelfs.codecs.blocks import Bytes
from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.floats import BF16, F16, F32, Float32s, FloatKind
from modelfs.codecs.grouping import SIZES, best_grouping, may_be_products
from modelfs.codecs.parts import RAW, Methods, Numbers, apart, joined, numbers_of
from modelfs.codecs.plain import RawCodec
from modelfs.codecs.products import (
    BLOCK,
    LARGEST,
    NARROW,
    SMALLEST,
    Groups,
    Int16s,
    Multiplier,
    groups_in,
    multiply_all,
)
from modelfs.codecs.scales import MOST_CODES, Divisor, Solution, solve

SCALES: Final = (F16, BF16, F32)
_HEAD = struct.Struct("<BI")
_SKIP = struct.Struct("<I")
# With the scales' kind where skip follows.
_SHIFTED = 0x80
# Of the groups so many may be something else, say a bias between two matrices.
_MOST_OTHERS = 0.25


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
        others = groups.elements_of(np.isnan(groups.scales))
        minus = elements == self._kind.sign
        minus = minus[np.flatnonzero(groups.codes == 0)] if minus.any() else minus[:0]
        kind = _cheapest(groups.scales)
        parts = (self._numbers.encode(_with_nan(groups.scales, SCALES[kind])), self._numbers.encode(groups.lowest),
                 self._codes.encode(groups.codes),
                 self._numbers.encode(np.packbits(minus, bitorder="little")) if minus.any() else (RAW, b""),
                 (RAW, elements[others].tobytes()))
        stored = b"".join((_head(kind, groups), *joined(parts), data[elements.nbytes:]))
        return stored if len(stored) < len(data) else None

    def _groups(self, elements: Numbers) -> Groups | None:
        kind, found = self._kind, best_grouping(elements, self._kind)
        if found is None:
            return None
        size, skip = found.size, found.skip
        padded = np.zeros(groups_in(len(elements), size, skip) * size, elements.dtype)
        padded[skip:skip + len(elements)] = elements
        minus = padded == kind.sign
        if minus.any():
            padded[minus] = 0  # groups know one zero; encode stores which were negative
        rows = padded.reshape(-1, size)
        groups = Groups(size, skip, np.full(len(rows), np.nan, np.float32), np.full(len(rows), NARROW, np.int16),
                        np.zeros(padded.size, np.uint8))
        # The likeliest divisor for all of them, then the others for those that are left.
        for some in (found.divisors[:1], found.divisors[1:]):
            _find(rows, kind, some, groups)
        others = np.isnan(groups.scales)
        if np.count_nonzero(others) > _MOST_OTHERS * len(others):
            return None
        codes = groups.codes[skip:skip + len(elements)]
        return Groups(size, skip, groups.scales, groups.lowest, codes)

    def decode(self, stored: memoryview, out: memoryview) -> None:
        width = self._kind.width
        count = len(out) // width
        whole = count * width
        end = len(stored) - (len(out) - whole)
        if not count or end < _HEAD.size:
            raise CodecError("too short for products")
        code, size = _HEAD.unpack_from(stored)
        at, skip = _HEAD.size, 0
        if code & _SHIFTED and end >= at + _SKIP.size:
            code, skip = code ^ _SHIFTED, *_SKIP.unpack_from(stored, at)
            at += _SKIP.size
            known = SMALLEST <= size <= LARGEST and skip < size
        else:
            known = size in SIZES
        if code >= len(SCALES) or not known:
            raise CodecError(f"scales of kind {code} for groups of {size}, the first without {skip}")
        scales, lowest, codes, minus, others = apart(stored[at:end], 5)
        number = groups_in(count, size, skip)
        groups = Groups(size, skip, self._scales(*scales, SCALES[code], number), self._lowest(*lowest, number),
                        self._codes.decode(*codes, count))
        target: Numbers = np.frombuffer(out[:whole], f"<u{width}")
        multiply_all(groups, self._kind, target)
        self._set_minus(*minus, groups.codes, target)
        self._set_others(*others, groups, target)
        out[whole:] = stored[end:]

    def _scales(self, method: int, stored: memoryview, kind: FloatKind, count: int) -> Float32s:
        scales = kind.single(self._numbers.decode(method, stored, count * kind.width).view(f"<u{kind.width}"))
        if bool((np.isinf(scales) | (scales < 0)).any()):
            raise CodecError("a scale that is infinite or negative")
        return scales

    def _lowest(self, method: int, stored: memoryview, count: int) -> Int16s:
        lowest = self._numbers.decode(method, stored, count * 2).view("<i2")
        if bool(((lowest > 0) | (lowest <= -MOST_CODES)).any()):
            raise CodecError("a group whose multiples begin above 0 or below -255")
        return lowest

    def _set_minus(self, method: int, stored: memoryview, codes: Bytes, target: Numbers) -> None:
        if not len(stored):
            return
        bits = self._numbers.decode(method, stored, -(-int(np.count_nonzero(codes == 0)) // 8))
        signs, done = np.unpackbits(bits, bitorder="little") * target.dtype.type(self._kind.sign), 0
        for start in range(0, len(codes), BLOCK):
            at = np.flatnonzero(codes[start:start + BLOCK] == 0)
            target[start:start + BLOCK][at] = signs[done:done + len(at)]
            done += len(at)

    def _set_others(self, method: int, stored: memoryview, groups: Groups, target: Numbers) -> None:
        unknown = np.isnan(groups.scales)
        others = groups.elements_of(unknown) if unknown.any() else unknown[:0]
        if method != RAW or len(stored) != int(np.count_nonzero(others)) * self._kind.width:
            raise CodecError("the groups without a scale are not all there")
        if len(stored):
            target[others] = np.frombuffer(stored, target.dtype)


def _head(kind: int, groups: Groups) -> bytes:
    if groups.size in SIZES and not groups.skip:
        return _HEAD.pack(kind, groups.size)
    return _HEAD.pack(kind | _SHIFTED, groups.size) + _SKIP.pack(groups.skip)


def _find(rows: Numbers, kind: FloatKind, divisors: tuple[Divisor, ...], groups: Groups) -> None:
    """Fills in those of groups that have no scale and whose rows are products."""
    left, size = np.flatnonzero(np.isnan(groups.scales)) if divisors else np.zeros(0, np.int64), groups.size
    codes, step = groups.codes.reshape(-1, size), max(1, BLOCK // size)
    multiplier = Multiplier(kind, step * size)
    for start in range(0, len(left), step):
        which: Any = left[start:start + step]
        if which[-1] - which[0] == len(which) - 1:
            which = slice(which[0], which[-1] + 1)
        block = rows[which]
        solution = solve(block, kind, divisors)
        found = solution.multiples.astype(np.uint8)
        lowest = _lowest(solution.multiples)
        scales = _proved(block, solution, found, lowest, multiplier)
        unknown = np.isnan(scales)
        if unknown.any():
            lowest[unknown], found[unknown] = NARROW, 0
        groups.scales[which], groups.lowest[which], codes[which] = scales, lowest, found


def _lowest(multiples: Int16s) -> Int16s:
    most = NARROW + MOST_CODES
    if multiples.min() >= NARROW and multiples.max() < most:
        return np.full(len(multiples), NARROW, np.int16)
    lows = np.minimum(multiples.min(axis=1), 0)
    return np.where((lows >= NARROW) & (multiples.max(axis=1) < most), np.int16(NARROW), lows)


def _proved(rows: Numbers, solution: Solution, codes: Bytes, lowest: Int16s, multiplier: Multiplier) -> Float32s:
    """For each of rows the scale with which its codes give it, in every bit; else NaN."""
    scales = np.full(len(rows), np.nan, np.float32)
    products = np.empty_like(rows)
    for proposed in _proposals(solution):
        at = np.flatnonzero(np.isnan(scales) & (solution.low <= proposed) & (proposed <= solution.high))
        if len(at):
            some: Any = slice(None) if len(at) == len(rows) else at
            again = products[:len(at)]
            multiplier.fill(codes[some], lowest[some], proposed[some], again)
            same = again == rows[some]
            proved = at if same.all() else at[same.all(axis=1)]
            scales[proved] = proposed[proved]
            if len(proved) == len(rows):
                break
    return scales


def _proposals(solution: Solution) -> Iterator[Float32s]:
    """For each group numbers between low and high, those that take the fewest bits first: fp16, bf16, a fp32 whose
    last byte is 0, any. What lies on an edge of the interval may yet round to the wrong side."""
    middle = ((solution.low + solution.high) / 2).astype(np.float32)
    for kind in (F16, BF16):
        yield kind.single(kind.rounded(middle))
    yield (middle.view(np.uint32) + np.uint32(0x80) & np.uint32(0xFFFFFF00)).view(np.float32)
    yield middle


def _cheapest(scales: Float32s) -> int:
    known = np.nan_to_num(scales)
    return next(code for code, kind in enumerate(SCALES) if np.array_equal(kind.single(kind.rounded(known)), known))


def _with_nan(scales: Float32s, kind: FloatKind) -> Numbers:
    bits = kind.rounded(np.nan_to_num(scales))
    bits[np.isnan(scales)] = kind.infinity + 1
    return bits
