"""How a chunk's elements lie in groups that each have a scale: how many are a group, and where the first begins.

Rule: what is said here is a guess from samples. Sizes are read off the places where the scale of one group stops to
explain its neighbours (a row of 1152, also in a chunk that begins within a row); where none show, as with one scale
for all, powers of two are tried from the chunk's start on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from modelfs.codecs.floats import BF16, Float64s, FloatKind
from modelfs.codecs.parts import Numbers, spread
from modelfs.codecs.products import LARGEST, SMALLEST
from modelfs.codecs.scales import (
    DIVISORS,
    FINE,
    FINE_DIVISORS,
    MOST_CODES,
    Divisor,
    bounds_of,
    fitting,
    guesses_of,
    interval_of,
)

SIZES: Final = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16)
# Divisors up to this are of 4 bits.
_FEW = 16
# Where none of so many groups are products, no more are looked at.
_LOOK = 4
# A size of groups is taken if so many of the sample's groups are products.
_MOST = 0.75
_SAMPLE = 1024
# Of each so many elements.
_COLUMNS = 128
# Neighbours looked at, and where many are zero.
_WINDOW = 32
_HALF = 16
_WIDE = 128
# So many that are not zero are not by accident all multiples of one number.
_EVIDENCE = 8
_EQUAL = 3
# The first few leave few of the steps.
_FIRST = 4
# Binary logarithm of how likely it may be that numbers are multiples by accident; there are 255 steps. A wrong end of
# a group costs less than a trial of all sizes.
_CHANCE = -20
_END_CHANCE = -12
# The bits of neighbours' magnitudes, as numbers, differ by less in bf16 (12 binades), by more in fp16 (1.5).
_SPREAD = 0x600
_MULTIPLES = np.arange(1.0, MOST_CODES)
# Ends of groups that are looked for, in so many windows; how far a group is followed at a time; and how many elements
# that are not zero show its scale.
_ENDS = 12
_TRIES = 24
_SEEN = 16
_SEEN_BF16 = 24
_STRIDE = 2048


@dataclass(frozen=True, slots=True)
class Grouping:
    """The first group lacks its first skip elements. divisors: those to try, the likeliest first."""

    size: int
    skip: int
    divisors: tuple[Divisor, ...]


def may_be_products(elements: Numbers, kind: FloatKind) -> bool:
    """Whether some neighbours are, as far as rounding lets one see, whole multiples of one number, of which the largest
    is 1 to 255. Ordinary weights are seen through in 30 µs, by counting equal ones."""
    return any(_seems_whole(elements[start:start + _WIDE], kind) for start in _starts(elements))


def _starts(elements: Numbers) -> tuple[int, int]:
    """A chunk may begin with something else, say a bias."""
    return 0, len(elements) // 2 & -SIZES[0]


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
        # A group may end between, but of bf16 half of them say too little.
        parts = [there] if kind is BF16 else [there[:_HALF], there[_HALF:]]
        return any(len(_steps(kind.halves(2 * part), kind)) for part in parts)
    there = patterns[patterns != 0]
    return len(there) >= _EVIDENCE and len(_steps(kind.halves(2 * there), kind)) > 0


def _steps(sizes: Float64s, kind: FloatKind, chance: float = _CHANCE) -> Float64s:
    """Of what may be 1 / scale, rising, those that make whole numbers of all sizes, and would hardly by accident."""
    steps: Float64s = _MULTIPLES / sizes.max()
    finest = 2.0 ** (1 - kind.precision)
    for some in (sizes[:_FIRST, None], sizes[_FIRST:, None]):
        multiples = some * steps
        rounding = finest * (multiples + steps * kind.finest)
        steps = steps[(np.abs(np.rint(multiples) - multiples) <= rounding).all(axis=0)]
        if not len(steps):
            return steps
    # Near a large multiple of a small scale lies every number.
    chances = np.log2(np.minimum(1, 2 * finest * sizes[:, None] * steps)).sum(axis=0)
    return np.asarray(steps[chances <= chance], np.float64)


def best_grouping(elements: Numbers, kind: FloatKind) -> Grouping | None:
    """The size of groups that their ends show; else the largest in which elements are products."""
    largest = kind.halves(2 * (spread(elements, 4096) & (kind.sign - 1)).max(keepdims=True))[0]
    divisors = DIVISORS + FINE_DIVISORS if largest < FINE else DIVISORS
    for size, first in chain(_sizes_seen(elements, kind), ((size, 0) for size in SIZES)):
        fit = _divisors_for(elements[first:], size, kind, divisors)
        if fit:
            return Grouping(size, -first % size, fit)
    return None


def _divisors_for(elements: Numbers, size: int, kind: FloatKind, divisors: tuple[Divisor, ...]) -> tuple[Divisor, ...]:
    """Those with which groups are products, the likeliest first; none where too few are."""
    whole = len(elements) // size
    rows = np.linspace(0, whole - 1, min(whole, max(2, _SAMPLE // size))).astype(np.int64)
    sample = elements[:whole * size].reshape(whole, size)[rows]
    sample = sample[np.count_nonzero(sample & (kind.sign - 1), axis=1) >= _EVIDENCE]
    if not len(sample):
        return ()
    guesses = guesses_of(sample, kind, divisors)
    few = slice(None, None, -(-len(sample) // _LOOK))
    if not fitting(sample[few], guesses[:, few], kind, _COLUMNS).any():
        return ()
    fits = fitting(sample, guesses, kind, _COLUMNS)
    some = fits.any(axis=0)
    if np.count_nonzero(some) < _MOST * len(sample):
        return ()
    wins = np.bincount(fits.argmax(axis=0)[some], minlength=len(divisors))
    alike = [k for k, each in enumerate(divisors) if any(_alike(each, divisors[win]) for win in np.flatnonzero(wins))]
    return tuple(divisors[k] for k in sorted(alike, key=lambda k: -int(wins[k])))


def _alike(one: Divisor, other: Divisor) -> bool:
    return (one[1] > _FEW) == (other[1] > _FEW)


def _sizes_seen(elements: Numbers, kind: FloatKind) -> Iterator[tuple[int, int]]:
    """Sizes of groups and where the first one begins that is whole, as ends of groups show; the likeliest first."""
    for start in _starts(elements):
        ends = _ends(elements, start, kind)
        # Where an element of the next group is by accident a multiple of this one's scale, the end is seen too late.
        sizes, times = np.unique(np.diff(ends), return_counts=True)
        for size in sizes[np.argsort(-times, kind="stable")][:2]:
            if SMALLEST <= size <= LARGEST and times.max() > 1:
                firsts, often = np.unique(np.array(ends) % size, return_counts=True)
                yield int(size), int(firsts[often.argmax()])


def _ends(elements: Numbers, at: int, kind: FloatKind) -> list[int]:
    """From at on, where groups end, each found from the one before."""
    ends: list[int] = []
    for _ in range(_TRIES):
        window: Any = elements[at:at + _WIDE] & (kind.sign - 1)
        window = window[np.flatnonzero(window)[:_SEEN_BF16 if kind is BF16 else _SEEN]]
        if len(window) < _EVIDENCE or len(ends) == _ENDS:
            break
        steps = _steps(kind.halves(2 * window), kind, _END_CHANCE)
        end = _end(elements, at, 1 / steps[0], window, kind) if len(steps) else None
        if end is None or end - at > LARGEST:
            at += _EVIDENCE
            continue
        ends.append(end)
        at = end
    return ends


def _end(elements: Numbers, at: int, scale: float, window: Numbers, kind: FloatKind) -> int | None:
    """The first element from at on that is no multiple of the scale of window."""
    low, high, _ = interval_of(bounds_of(window[None], kind, np.float64), np.array([scale]), kind)
    if low[0] > high[0]:
        return None
    for start in range(at, min(at + 2 * LARGEST, len(elements)), _STRIDE):
        bounds = bounds_of(elements[start:start + _STRIDE], kind, np.float64)
        sizes = np.rint(bounds.values * (2 / (low[0] + high[0])))
        other = (bounds.least > sizes * high[0]) | (bounds.most < sizes * low[0]) | (sizes >= MOST_CODES)
        other |= (sizes == 0) & (bounds.values > 0)
        if other.any():
            return start + int(other.argmax())
    return None
