"""From rounded products q·s back to a scale s for each group and its whole numbers q, which nobody recorded.

Rule: only what is proposed here is a guess; affine.py computes the products again and compares every bit.

A group's largest magnitude is 7, 8, 127 or 128 times its scale, or its range is 15 or 255 times it, give or take one.
That gives s to the precision of the elements, and so every q. An element with its q then says in which interval s
lies (between the numbers that just round to the element), and the whole group's intervals have little in common: their
middle is as good as the scale that was used, which lies in them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfs.codecs.floats import Float64s, FloatKind
from modelfs.codecs.parts import Numbers
from modelfs.codecs.products import Int16s

Reals: TypeAlias = npt.NDArray[np.floating[Any]]
# (Whether of the range or of the largest magnitude, multiple), the small ones first: 255 is 17 * 15, and what is a
# product with 15 levels is one with 255, too.
Divisor = tuple[bool, int]
DIVISORS: Final[tuple[Divisor, ...]] = (
    (False, 7), (False, 8), (True, 15), (True, 14), (True, 16),
    (False, 127), (False, 128), (True, 255), (True, 254), (True, 256))
# Tried where the weights are below FINE: a scale in fp16 has few bits then, and was rounded up by more than 0.4 %.
FINE_DIVISORS: Final[tuple[Divisor, ...]] = (
    (False, 126), (False, 125), (False, 124), (True, 253), (True, 252), (True, 251), (True, 250))
FINE: Final = 2.0 ** -8
MOST_CODES: Final = 256
# So many elements of a group are looked at to see which divisors may be its own.
_PROBES = 16
# Up to so many elements a group, of 2 bytes each, narrow the interval of their scale so little that single precision
# tells its ends apart; it is twice as fast.
_ROUGH = 256


@dataclass(frozen=True, slots=True)
class Solution:
    """For each group: low and high, between which its scale lies (no solution where low > high); for each of its
    elements: multiples, q."""

    low: Float64s
    high: Float64s
    multiples: Int16s


@dataclass(frozen=True, slots=True)
class Bounds:
    """Magnitudes, and the numbers between which everything is rounded to them; [g, n]."""

    values: Reals
    least: Reals
    most: Reals

    def of(self, which: Any) -> Bounds:
        return Bounds(self.values[which], self.least[which], self.most[which])


def solve(groups: Numbers, kind: FloatKind, divisors: tuple[Divisor, ...]) -> Solution:
    """groups: [g, size], any of them with NaN and infinity, which have no solution; some ten temporaries of their size
    are made."""
    count, size = groups.shape
    found = Solution(np.ones(count), np.zeros(count), np.zeros((count, size), np.int16))
    wide = np.float32 if kind.width == 2 and size <= _ROUGH else np.float64
    bounds = bounds_of(groups, kind, wide)
    guesses = guesses_of(groups, kind, divisors)
    guesses[(guesses > 0) & (guesses < 4 * np.finfo(wide).tiny)] = np.nan  # without an inverse
    open_to = fitting(groups, guesses, kind, _PROBES) if len(divisors) > 1 else np.isfinite(guesses)
    unsolved = np.ones(count, np.bool_)
    for guess, fits in zip(guesses, open_to, strict=True):
        rows = np.flatnonzero(fits & unsolved)
        if len(rows):
            some: Any = slice(None) if len(rows) == count else rows
            low, high, sizes = interval_of(bounds.of(some), guess[some], kind)
            solved = low <= high
            found.low[rows], found.high[rows] = np.where(solved, low, 1), np.where(solved, high, 0)
            sizes[~solved] = 0
            found.multiples[some] = sizes
            unsolved[rows[solved]] = False
    signs = (groups.view(f"<i{kind.width}") >> (8 * kind.width - 1)).astype(np.int16)
    signs |= 1
    found.multiples[:] *= signs
    return found


def guesses_of(groups: Numbers, kind: FloatKind, divisors: tuple[Divisor, ...]) -> Float64s:
    """For each divisor and group the scale that the divisor gives; NaN where the group has NaN or infinity."""
    patterns = groups & (kind.sign - 1)
    largest = patterns.max(axis=1)
    top = np.where(largest < kind.infinity, kind.halves(2 * largest), np.nan)
    ranges = top
    if any(by_range for by_range, _ in divisors):
        signed = np.where(groups >= kind.sign, -patterns.astype(np.int64), patterns)
        high, low = (np.sign(end) * kind.halves(2 * np.abs(end)) for end in (signed.max(axis=1), signed.min(axis=1)))
        ranges = high - low + (top - top)
    return np.stack([(ranges if by_range else top) / multiple for by_range, multiple in divisors])


def fitting(groups: Numbers, guesses: Float64s, kind: FloatKind, columns: int) -> npt.NDArray[np.bool_]:
    """For each divisor and group whether some columns let the guess be about the group's scale."""
    step = max(1, groups.shape[1] // columns)
    bounds = bounds_of(groups[:, ::step | 1], kind, np.float64)
    low, high, sizes = interval_of(bounds, np.nan_to_num(guesses), kind)
    lost = ((sizes == 0) & (bounds.values > 0)).any(axis=-1)
    return np.asarray((low <= high) & np.isfinite(guesses) & ~lost)


def bounds_of(groups: Numbers, kind: FloatKind, wide: type[np.float32 | np.float64]) -> Bounds:
    bits, fraction, bias = (np.uint32, 23, 127) if wide is np.float32 else (np.uint64, 52, 1023)
    own = kind.precision - 1
    half = bits(1 << fraction - own - 1)
    steps: npt.NDArray[Any] = (groups & (kind.sign - 1)).astype(bits)
    steps <<= bits(fraction - own)
    found: list[Any] = [each.view(wide) for each in (steps, np.maximum(steps, half) - half, steps + half)]
    factor = 2.0 ** (bias + 1 - (1 << 8 * kind.width - 2 - own))
    if factor != 1:
        for each in found:
            each *= factor
    return Bounds(*found)


def interval_of(bounds: Bounds, scales: Float64s, kind: FloatKind) -> tuple[Float64s, Float64s, Reals]:
    """Of groups with about these scales: low, high and, without signs, the multiples."""
    # What the error of the first guess cannot have moved to another whole number is enough for a second one.
    sure = 0.2 * 2.0 ** kind.precision
    for trusted in ((sure, MOST_CODES) if sure < MOST_CODES else (MOST_CODES,)):
        inverse = 1 / np.where(scales > 0, scales, 1)
        with np.errstate(over="ignore"):
            sizes: Reals = bounds.values * inverse[..., None].astype(bounds.values.dtype)
        np.rint(sizes, out=sizes)
        # Zeros bound nothing.
        under, over = np.maximum(sizes, 0.5), sizes
        if trusted < MOST_CODES:
            doubtful = sizes > trusted
            under, over = np.where(doubtful, np.inf, under), np.where(doubtful, 0, sizes)
        np.divide(bounds.least, under, out=under)
        low = under.max(axis=-1).astype(np.float64)
        np.divide(over, bounds.most, out=under)
        most = under.max(axis=-1).astype(np.float64)
        high = np.divide(1, most, out=np.zeros_like(most), where=most > 0)
        scales = np.where(high > 0, (low + high) / 2, scales)
    # A product that lay just between two numbers bounds its scale by the scale itself, give or take a rounding.
    error = 4 * float(np.finfo(bounds.values.dtype).eps)
    return low * (1 - error), high * (1 + error), sizes
