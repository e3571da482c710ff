"""From rounded products q·s back to a scale s for each group and its whole numbers q, which nobody recorded.

Rule: only what is proposed here is a guess; affine.py computes the products again and compares every bit.

A group's largest magnitude is 7, 8, 127 or 128 times its scale, or its range is 15 or 255 times it, give or take one.
That gives s to the precision of the elements, and so every q. An element with its q then says in which interval s
lies (between the numbers that just round to the element), and the whole group's intervals have little in common: their
middle is as good as the scale that was used, which lies in them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfs.codecs.floats import BF16, Float64s, FloatKind
from modelfs.codecs.parts import Numbers

GROUPS: Final = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16)
# (Whether of the range or of the largest magnitude, multiple), the small ones first: 255 is 17 * 15, and what is a
# product with 15 levels is one with 255, too.
Divisor = tuple[bool, int]
DIVISORS: Final[tuple[Divisor, ...]] = (
    (False, 7), (False, 8), (True, 15), (True, 14), (True, 16),
    (False, 127), (False, 128), (True, 255), (True, 254), (True, 256))
# Tried where the weights are so small that a scale in fp16 has few bits, and was rounded up by more than 0.4 %.
FINE_DIVISORS: Final[tuple[Divisor, ...]] = (
    (False, 126), (False, 125), (False, 124), (True, 253), (True, 252), (True, 251), (True, 250))
_FINE = 2.0 ** -8
MOST_CODES: Final = 256
_FEW = 16
# A size of groups is taken if so many of the sample's groups are products.
_MOST: Final = 0.75
_SAMPLE = 1024
# Elements solved at a time: some ten temporaries of 8 bytes for each stay in the processor's cache.
_BLOCK = 1 << 14
# Neighbours looked at, and where many are zero.
_WINDOW = 32
_WIDE = 128
# So many that are not zero are not by accident all multiples of one number.
_EVIDENCE = 8
_EQUAL = 3
# The bits of neighbours' magnitudes, as numbers, differ by less in bf16 (12 binades), by more in fp16 (1.5).
_SPREAD = 0x600
_MULTIPLES = np.arange(1.0, MOST_CODES)


@dataclass(frozen=True, slots=True)
class Solution:
    """For each group: low and high, between which its scale lies (no solution where low > high); for each of its
    elements: multiples, q."""

    low: Float64s
    high: Float64s
    multiples: npt.NDArray[np.int16]

    @property
    def solved(self) -> npt.NDArray[np.bool_]:
        return self.low <= self.high


def may_be_products(elements: Numbers, kind: FloatKind) -> bool:
    """Whether some neighbours are, as far as rounding lets one see, whole multiples of one number, of which the largest
    is 1 to 255. Ordinary weights are seen through in 30 µs, by counting equal ones."""
    middle = len(elements) // 2 & -GROUPS[0]
    return any(_seems_whole(elements[start:start + _WIDE], kind) for start in (0, middle))


def _seems_whole(elements: Numbers, kind: FloatKind) -> bool:
    patterns = elements & (kind.sign - 1)
    there = patterns[:_WINDOW]
    there = there[there != 0]
    if len(there) > 0.75 * _WINDOW:
        # Of 32 with 8 bits some 6 are equal to another, of ordinary ones 0 to 1.
        ordered = np.sort(there)
        if np.count_nonzero(ordered[1:] == ordered[:-1]) < _EQUAL:
            return False
        if kind.width == 2 and (ordered[-1] - ordered[0] >= _SPREAD) == (kind is BF16):
            return False
    else:
        there = patterns[patterns != 0]
        if len(there) < _EVIDENCE:
            return False
    sizes = kind.halves(2 * there)[:, None]
    steps = _MULTIPLES / sizes.max()
    multiples = sizes * steps
    rounding = 2.0 ** (1 - kind.precision) * (multiples + steps * kind.finest)
    return bool((np.abs(np.rint(multiples) - multiples) <= rounding).all(axis=0).any())


def best_group(elements: Numbers, kind: FloatKind) -> tuple[int, tuple[Divisor, ...]] | None:
    """The largest size of groups in which elements are products, and the divisors to try."""
    largest = kind.halves(2 * (elements & (kind.sign - 1)).max(keepdims=True))[0]
    divisors = DIVISORS + FINE_DIVISORS if largest < _FINE else DIVISORS
    for size in GROUPS:
        whole = len(elements) // size
        rows = np.linspace(0, whole - 1, min(whole, max(2, _SAMPLE // size))).astype(np.int64)
        sample = elements[:whole * size].reshape(whole, size)[rows]
        sample = sample[np.count_nonzero(sample & (kind.sign - 1), axis=1) >= _EVIDENCE]
        if not len(sample):
            continue
        wins = []
        left = sample
        for divisor in divisors:
            solved = solve(left, kind, (divisor,)).solved
            if solved.any():
                wins.append(divisor)
                left = left[~solved]
            if not len(left):
                break
        if len(left) <= (1 - _MOST) * len(sample):
            return size, tuple(each for each in divisors if any(_alike(each, win) for win in wins))
    return None


def _alike(one: Divisor, other: Divisor) -> bool:
    return (one[1] > _FEW) == (other[1] > _FEW)


def solve(groups: Numbers, kind: FloatKind, divisors: tuple[Divisor, ...]) -> Solution:
    """groups: [g, size], any of them with NaN and infinity, which have no solution."""
    count, size = groups.shape
    found = Solution(np.ones(count), np.zeros(count), np.zeros((count, size), np.int16))
    step = max(1, _BLOCK // size)
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        for divisor in divisors:
            each = _attempt(groups[rows], kind, divisor)
            solved = each.solved
            at = rows[solved]
            found.low[at], found.high[at], found.multiples[at] = (
                each.low[solved], each.high[solved], each.multiples[solved])
            rows = rows[~solved]
            if not len(rows):
                break
    return found


def _attempt(groups: Numbers, kind: FloatKind, divisor: Divisor) -> Solution:
    by_range, multiple = divisor
    patterns = groups & (kind.sign - 1)
    steps = 2 * patterns.astype(np.int64)
    values, most = kind.halves(steps), kind.halves(steps + 1)
    least = kind.halves(np.maximum(steps, 1) - 1)
    negative = groups >= kind.sign
    top = values.max(axis=1)
    if by_range:
        signed = np.where(negative, -values, values)
        top = signed.max(axis=1) - signed.min(axis=1)
    scale = top / multiple
    # What the error of the first guess cannot have moved to another whole number is enough for a second one.
    sure = 0.2 * 2.0 ** kind.precision
    for trusted in ((sure, MOST_CODES) if sure < MOST_CODES else (MOST_CODES,)):
        sizes = np.rint(values * (1 / np.where(scale > 0, scale, 1))[:, None])
        unused = (sizes == 0) | (sizes > trusted)
        divisors = np.where(unused, 1, sizes)
        low, high = least / divisors, most / divisors
        low[unused], high[unused] = 0, np.inf
        low, high = low.max(axis=1), high.min(axis=1)
        high[np.isinf(high)] = 0
        scale = (low + high) / 2
    signed_sizes = np.where(negative, -sizes, sizes)
    spread = signed_sizes.max(axis=1) - signed_sizes.min(axis=1)
    fits = (patterns.max(axis=1) < kind.infinity) & (np.maximum(spread, sizes.max(axis=1)) < MOST_CODES)
    fits &= ~((sizes == 0) & (patterns != 0)).any(axis=1)
    low[~fits] = np.inf
    return Solution(low, high, np.clip(signed_sizes, -MOST_CODES, MOST_CODES).astype(np.int16))
