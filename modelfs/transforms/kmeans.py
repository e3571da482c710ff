"""k-means of numbers on a line: clusters are intervals, so over sorted points with running sums a step of Lloyd's
algorithm is one binary search a cluster, O(k log n).

Rule: the squared error never grows from step to step, an empty cluster goes where it helps most, and the same points,
start and seed give the same centroids. Points that are no more than the clusters are the centroids, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfs.transforms.blocks import BLOCK_ELEMENTS, Block, Tensor
from modelfs.transforms.dtypes import Values

Doubles = npt.NDArray[np.float64]
_KEY_BITS = 20
MOST_STEPS = 500
TOLERANCE = 1e-5
_COARSE = 4096
_MOST_CLUSTERS = 256


@dataclass(frozen=True, slots=True)
class Points:
    """Rows of points that are clustered each by itself. values: each row's first sizes[row] are its points, sorted.

    Sums over the points before each: of counts, of counts × values, of counts × values².
    """

    values: Doubles
    sizes: npt.NDArray[np.int64]
    counts: Doubles
    sums: Doubles
    squares: Doubles

    @classmethod
    def of_rows(cls, values: Doubles, sizes: npt.NDArray[np.int64]) -> Points:
        counts = np.broadcast_to(np.arange(values.shape[1] + 1, dtype=np.float64), (len(values), values.shape[1] + 1))
        return cls(values, sizes, counts, _before(values), _before(values * values))

    @classmethod
    def of_counts(cls, values: Doubles, counts: Doubles) -> Points:
        """One row, of which counts points lie at each value."""
        values, counts = values[None], counts[None]
        weighted = values * counts
        return cls(values, np.array([values.size]), _before(counts), _before(weighted), _before(weighted * values))

    def row(self, number: int) -> Row:
        size = int(self.sizes[number])
        return Row(self.values[number, :size], self.counts[number, 1:size + 1])


@dataclass(frozen=True, slots=True)
class Row:
    """reached: how many points lie up to each value, itself included."""

    values: Doubles
    reached: Doubles


@dataclass(frozen=True, slots=True)
class Clusters:
    """centroids: of each row, ascending, the last repeated where a row needs no more. errors: steps by rows, the sum of
    squares after each step. converged: the rows of which another step would hardly help."""

    centroids: Doubles
    errors: Doubles
    converged: npt.NDArray[np.bool_]


def points_of(tensor: Tensor, exponent: int, *, zeros: bool) -> Points:
    """The tensor's values divided by 2**exponent, by which the largest is under 1.

    zeros: whether zeros count. Up to a block's elements are taken one by one, more are counted in bins 2**-11 wide (of
    the value), each a point at the mean of what lies in it: exact for BF16 and F16, whose values are no closer, and
    for 256 distinct values or fewer of any dtype. It takes 64 MiB for any tensor.
    """
    if math.prod(tensor.shape) <= BLOCK_ELEMENTS:
        return sorted_points(np.concatenate([_taken(block, zeros) for block in tensor.blocks(1)]), exponent)
    few = _few_distinct(tensor, zeros)
    if few is not None:
        return sorted_points(few, exponent)
    counts, sums = np.zeros(1 << _KEY_BITS), np.zeros(1 << _KEY_BITS)
    for block in tensor.blocks(1):
        values = _taken(block, zeros)
        keys = _keys(values)
        counts += np.bincount(keys, minlength=1 << _KEY_BITS)
        sums += np.bincount(keys, _divided(values, exponent), minlength=1 << _KEY_BITS)
    used = np.flatnonzero(counts)
    counts = counts[used]
    return Points.of_counts(sums[used] / counts, counts)


def sorted_points(values: Values, exponent: int) -> Points:
    """values: one axis, in any order."""
    divided = _divided(np.sort(values), exponent)
    return Points.of_rows(divided[None], np.array([len(divided)]))


def points_of_rows(values: Values, exponents: npt.NDArray[np.int32], *, zeros: bool) -> Points:
    """Each row of values, in any order, divided by 2**exponent."""
    sizes = np.full(len(values), values.shape[1])
    if not zeros:
        nothing = values == 0
        sizes -= np.count_nonzero(nothing, axis=1)
        values = np.where(nothing, np.inf, values)  # to the end, where nobody looks
    return Points.of_rows(np.ldexp(np.sort(values, axis=1).astype(np.float64), -exponents[:, None]), sizes)


def lloyd(points: Points, clusters: int, start: str, seed: int) -> Clusters:
    """A row ends when none of its points changes its cluster, when a step gains less than TOLERANCE of its error, or
    after MOST_STEPS; what other rows do does not matter to it.

    start: a name of STARTS.
    """
    rows = len(points.values)
    centroids, errors, error = np.zeros((rows, clusters)), list[Doubles](), np.zeros(rows)
    differ = points.values[:, 1:] != points.values[:, :-1]
    differ &= np.arange(1, points.values.shape[1]) < points.sizes[:, None]
    exact = np.count_nonzero(differ, axis=1) < clusters
    for number in range(rows):
        row = points.row(number)
        if exact[number]:
            few = np.unique(row.values)
            centroids[number] = np.concatenate([few, np.full(clusters - len(few), few[-1] if len(few) else 0.0)])
        else:
            centroids[number] = STARTS[start](row, clusters, seed)
    converged, active = exact.copy(), np.flatnonzero(~exact)
    edges = np.full((rows, clusters + 1), -1)
    while active.size and len(errors) < MOST_STEPS:
        mine = centroids[active]
        moved = _edges(points, active, (mine[:, 1:] + mine[:, :-1]) / 2)
        at = active[:, None], moved
        counts, sums = np.diff(points.counts[at]), np.diff(points.sums[at])
        some = np.maximum(counts, 1)
        squares = np.maximum(np.diff(points.squares[at]) - sums * sums / some, 0)
        gain = error[active]
        error[active] = squares.sum(axis=1)
        gain -= error[active]
        errors.append(error.copy())
        mine = np.where(counts > 0, sums / some, mine)
        full = counts.all(axis=1)
        for each in np.flatnonzero(~full):
            mine[each] = _without_empty(points.row(active[each]).values, mine[each], moved[each], squares[each])
        centroids[active] = mine
        ended = (edges[active] == moved).all(axis=1)
        if len(errors) > 1:
            ended |= gain <= TOLERANCE * error[active]
        ended &= full
        edges[active] = moved
        converged[active[ended]] = True
        active = active[~ended]
    return Clusters(centroids, np.array(errors or [error]), converged)


def _edges(points: Points, rows: npt.NDArray[np.int64], bounds: Doubles) -> npt.NDArray[np.int64]:
    """How many points of each row lie at or before each of its bounds, between 0 and all: a binary search for all at
    once. np.searchsorted knows no rows; a call for each takes ten times as long for rows of 384."""
    if len(rows) == 1:
        row = points.row(int(rows[0])).values
        return np.concatenate([[0], np.searchsorted(row, bounds[0], "right"), [len(row)]])[None]
    width = points.values.shape[1]
    flat, base = points.values.reshape(-1), rows[:, None] * width
    low = np.zeros(bounds.shape, np.int64)
    high = np.broadcast_to(points.sizes[rows][:, None], bounds.shape).copy()
    for _ in range(width.bit_length()):
        middle = (low + high) >> 1
        before = flat.take(base + middle, mode="clip") <= bounds
        before &= low < high
        low = np.where(before, middle + 1, low)
        high = np.where(before, high, middle)
    return np.concatenate([np.zeros((len(rows), 1), np.int64), low, points.sizes[rows][:, None]], axis=1)


def _without_empty(values: Doubles, centroids: Doubles, edges: npt.NDArray[Any], squares: Doubles) -> Doubles:
    """Each empty cluster moves to the end of one with much error, to the point that lies farthest from its centroid."""
    first, last = values[np.minimum(edges[:-1], len(values) - 1)], values[edges[1:] - 1]
    empty = edges[1:] == edges[:-1]
    divisible = np.flatnonzero(~empty & (last > first))
    worst = divisible[np.argsort(-squares[divisible], kind="stable")][:np.count_nonzero(empty)]
    farthest = np.where(centroids - first > last - centroids, first, last)
    moved = centroids.copy()
    moved[np.flatnonzero(empty)[:len(worst)]] = farthest[worst]
    return np.sort(moved)


def _by_quantile(row: Row, clusters: int, seed: int) -> Doubles:
    """Quantiles, of the cube root of the density: where many levels end up (Panter and Dite 1951).

    Between neighbours of 4097 that cut the points into equal parts the density is as 1 / width, so each part weighs
    width ** (2/3). Quantiles of the density itself take 120 steps for 16 clusters of a million Gaussian weights, and
    for 256 have 2.4 times the error after 500; these take 70 and 48.
    """
    knots = _coarse(row, _COARSE + 1)
    reached = _before(np.diff(knots) ** (2 / 3))
    wanted = (np.arange(clusters) + 0.5) / clusters * reached[-1]
    return np.asarray(np.interp(wanted, reached, knots), np.float64)


def _plus_plus(row: Row, clusters: int, seed: int) -> Doubles:
    """k-means++ (Arthur and Vassilvitskii 2007) among 4096 points of equal weight, the outermost among them."""
    coarse = _coarse(row, _COARSE)
    generator = np.random.default_rng(seed)
    chosen = [coarse[generator.integers(len(coarse))]]
    distance = np.full(len(coarse), np.inf)
    while len(chosen) < clusters:
        distance = np.minimum(distance, (coarse - chosen[-1]) ** 2)
        reached = np.cumsum(distance)
        place = np.searchsorted(reached, generator.random() * reached[-1], "right")
        chosen.append(coarse[min(int(place), len(coarse) - 1)])
    return np.sort(np.array(chosen))


def _coarse(row: Row, most: int) -> Doubles:
    """All values, or as many as most at equal distances in rank, first and last among them."""
    if len(row.values) <= most and row.reached[-1] == len(row.values):
        return row.values
    wanted = np.linspace(0.5, row.reached[-1] - 0.5, most)
    return row.values[np.searchsorted(row.reached, wanted)]


STARTS: Mapping[str, Callable[[Row, int, int], Doubles]] = MappingProxyType(
    {"quantile": _by_quantile, "k-means++": _plus_plus})


def _few_distinct(tensor: Tensor, zeros: bool) -> Values | None:
    """Up to 256 distinct values, sorted; None where there are more, which the first elements mostly tell."""
    found: Values | None = None
    for block in tensor.blocks(1):
        values = _taken(block, zeros)
        for part in (values[:_COARSE], values[_COARSE:]):
            found = np.unique(part if found is None else np.concatenate([found, np.unique(part)]))
            if len(found) > _MOST_CLUSTERS:
                return None
    return found


def _taken(block: Block, zeros: bool) -> Values:
    values = block.values.reshape(-1)
    return values if zeros else values[values != 0]


def _keys(values: Values) -> npt.NDArray[np.intp]:
    """The upper bits of float32, changed so that they order as the values do: of negative ones all bits turned."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32, copy=False).view(np.int32)
    turned = bits ^ ((bits >> 31) | np.int32(-1 << 31))
    return (turned.view(np.uint32) >> np.uint32(32 - _KEY_BITS)).astype(np.intp)


def _divided(values: Values, exponent: int) -> Doubles:
    """By 2**exponent, in two steps, since 2**1074 is no float64. ldexp takes six times as long."""
    half = exponent // 2
    divided = values.astype(np.float64)
    divided *= 2.0 ** -half
    divided *= 2.0 ** (half - exponent)
    return divided


def _before(values: Doubles) -> Doubles:
    """Sums along the last axis, before each."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums
