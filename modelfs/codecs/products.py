"""Whole multiples of a scale for each group of elements, and the bits of their products.

Rule: a product is q·s in binary32, rounded to the elements' kind, both to the nearest, ties to even; the ways to get
there differ only in speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelfs.codecs.blocks import Bytes
from modelfs.codecs.floats import BF16, F16, Float32s, FloatKind
from modelfs.codecs.parts import Numbers

Int16s = npt.NDArray[np.int16]
# The lowest multiple of a group whose codes are signed bytes.
NARROW: Final = -128
# Elements a group.
SMALLEST: Final = 16
LARGEST: Final = 1 << 16
# Elements computed at a time: temporaries stay in the processor's caches, and calls cost little beside them (an
# element takes 2.6 ns with a quarter of this, 1.7 with this).
BLOCK: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Groups:
    """scales and lowest for each group, codes for each element. The first group lacks its first skip elements, and the
    last may lack some at its end; all others have size."""

    size: int
    skip: int
    scales: Float32s
    lowest: Int16s
    codes: Bytes

    @property
    def count(self) -> int:
        return groups_in(len(self.codes), self.size, self.skip)

    def elements_of(self, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        lengths = np.full(self.count, self.size)
        lengths[-1] -= self.count * self.size - self.skip - len(self.codes)
        lengths[0] -= self.skip
        return np.repeat(which, lengths)

    def runs(self) -> list[tuple[slice, slice, int]]:
        """Which groups, which elements, elements a group: the rest of the first, the whole ones, the last."""
        size, count = self.size, len(self.codes)
        head = min(size - self.skip, count) if self.skip else 0
        first, whole = int(head > 0), (count - head) // size
        end = head + whole * size
        found = [(slice(0, first), slice(0, head), head), (slice(first, first + whole), slice(head, end), size),
                 (slice(first + whole, first + whole + 1), slice(end, count), count - end)]
        return [run for run in found if run[2] and run[1].stop > run[1].start]


def groups_in(count: int, size: int, skip: int) -> int:
    return -(-(count + skip) // size)


class Multiplier:
    """For one thread. most: elements of the largest block that it will be given."""

    def __init__(self, kind: FloatKind, most: int) -> None:
        self._kind = kind
        self._products = np.empty(most if kind.width == 2 else 0, np.float32)
        self._rounding = np.empty(most if kind.width == 2 else 0, np.uint32)
        self._signs = np.empty(most if kind is F16 else 0, np.uint16)

    def fill(self, codes: Bytes, lowest: Int16s, scales: Float32s, out: Numbers) -> None:
        """codes and out: [g, size]; the others: [g], no scale NaN."""
        multiples: npt.NDArray[Any] = codes.view(np.int8)
        if (lowest != NARROW).any():
            multiples = codes - lowest.astype(np.uint8)[:, None] + lowest[:, None]
        if self._kind.width == 4:
            _multiply(multiples, scales, out.view(np.float32))
            return
        products = self._products[:codes.size].reshape(codes.shape)
        if self._kind is BF16:
            _multiply(multiples, scales, products)
            self._round(products, 16, out)
        elif _scaled_exactly(scales):
            # Exponents as fp16 has them: what is left is to drop 13 bits, and to move the sign.
            _multiply(multiples, scales * np.float32(2.0 ** -112), products)
            self._round(products, 13, out)
            signs = self._signs[:codes.size].reshape(codes.shape)
            np.copyto(signs.view(np.int16), multiples)
            np.bitwise_and(signs, np.uint16(0x8000), out=signs)
            np.bitwise_or(out, signs, out=out)
        else:
            _multiply(multiples, scales, products)
            np.copyto(out, self._kind.rounded(products))

    def _round(self, products: Float32s, bits: int, out: Numbers) -> None:
        """The products without their last bits, and of the others the lower 16."""
        patterns, rounding = products.view(np.uint32), self._rounding[:products.size].reshape(products.shape)
        np.right_shift(patterns, np.uint32(bits), out=rounding)
        np.bitwise_and(rounding, np.uint32(1), out=rounding)
        np.add(rounding, np.uint32((1 << bits - 1) - 1), out=rounding)
        np.add(rounding, patterns, out=rounding)
        np.right_shift(rounding, np.uint32(bits), out=rounding)
        np.copyto(out, rounding, casting="unsafe")


def _multiply(multiples: npt.NDArray[Any], scales: Float32s, out: npt.NDArray[Any]) -> None:
    np.copyto(out, multiples)
    np.multiply(out, scales[:, None], out=out)


def _scaled_exactly(scales: Float32s) -> bool:
    """Whether no product of a scale and a number up to 255 is beyond fp16's largest, and none times 2^-112 is denormal,
    which would lose bits, and be zero in a process that flushes denormals."""
    return bool((scales <= 256).all() and ((scales >= 2.0 ** -14) | (scales == 0)).all())


def multiply_all(groups: Groups, kind: FloatKind, out: Numbers) -> None:
    """Every product's bits into out; zeros for a group whose scale is NaN."""
    scales = np.nan_to_num(groups.scales)
    multiplier = Multiplier(kind, min(max(BLOCK, groups.size), len(out)))
    for which, where, size in groups.runs():
        step = max(1, BLOCK // size)
        for first in range(which.start, which.stop, step):
            some = slice(first, min(first + step, which.stop))
            at = slice(where.start + (first - which.start) * size, where.start + (some.stop - which.start) * size)
            multiplier.fill(groups.codes[at].reshape(-1, size), groups.lowest[some], scales[some],
                            out[at].reshape(-1, size))
