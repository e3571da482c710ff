"""Clustering: each weight becomes the nearest of 4 to 256 values, a codebook that k-means finds for the tensor or for
each group along a row (Han et al. 2016, trained quantisation).

Rule: the codebook's values are exact in the tensor's dtype, and each weight takes the nearest. A tensor with no more
distinct values than the codebook comes out as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfs.transforms.blocks import Block, Geometry, Tensor
from modelfs.transforms.dtypes import BITS, Values, encode, float_of, rounded
from modelfs.transforms.kmeans import lloyd, points_of, points_of_rows
from modelfs.transforms.transform import Fitted, LeftAlone, Part, Pieces, extent_of

CODEBOOK = "_codebook"


@dataclass(frozen=True, slots=True)
class Cluster:
    """bits: 2 to 8. group: elements that share a codebook, 0 for the whole tensor. start, seed: as kmeans.lloyd takes.

    zeros: zeros stay, with a code of their own, and belong to no cluster: what comes after pruning.
    """

    bits: int = 4
    group: int = 0
    start: str = "quantile"
    seed: int = 0
    zeros: bool = False

    @property
    def name(self) -> str:
        return f"k-means {1 << self.bits}" + (f" group {self.group}" if self.group else "") + (
            f" {self.start}" if self.start != "quantile" else "")

    @property
    def unit(self) -> int:
        return self.group or 1

    @property
    def clusters(self) -> int:
        return (1 << self.bits) - self.zeros

    def fit(self, tensor: Tensor) -> Fitted | LeftAlone:
        extent = extent_of(tensor, self.bits)
        if isinstance(extent, LeftAlone):
            return extent
        geometry = Geometry.of(tensor.shape, self.unit)
        codebooks = geometry.rows * geometry.groups(self.group) if self.group else 1
        bits = self.bits + (BITS[tensor.dtype] << self.bits) * codebooks / extent.count
        if self.group:
            return FittedGroups(self, tensor.dtype, tensor.shape, bits)
        if not extent.largest:
            return LeftAlone("all zero", BITS[tensor.dtype])
        exponent = math.frexp(extent.largest)[1]
        points = points_of(tensor, exponent, zeros=not self.zeros)
        centroids = np.ldexp(lloyd(points, self.clusters, self.start, self.seed).centroids[0], exponent)
        codebook = rounded(centroids, tensor.dtype).astype(float_of(tensor.dtype))
        return FittedCluster(self, tensor.dtype, tensor.shape, bits, codebook.tobytes())


@dataclass(frozen=True, slots=True)
class FittedCluster:
    """stored: the clusters' values, ascending, as float_of(dtype)."""

    method: Cluster
    dtype: str
    shape: tuple[int, ...]
    bits: float
    stored: bytes

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"": Part("U8", self.shape), CODEBOOK: Part(self.dtype, (1 << self.method.bits,))}

    def apply(self, block: Block) -> Values:
        return self._table()[self._codes(block.values)]

    def encode(self, block: Block) -> Pieces:
        pieces: dict[str, npt.NDArray[Any]] = {"": self._codes(block.values).reshape(-1)}
        if block.start == 0:
            pieces[CODEBOOK] = encode(self._table(), self.dtype)
        return pieces

    def _codes(self, values: Values) -> npt.NDArray[np.uint8]:
        return _codes(values, np.frombuffer(self.stored, float_of(self.dtype)), self.method.zeros)

    def _table(self) -> Values:
        return _table(np.frombuffer(self.stored, float_of(self.dtype)), self.method.zeros)


@dataclass(frozen=True, slots=True)
class FittedGroups:
    """Codebooks are found anew for each block: a group lies in one block whole, and k-means gives the same again."""

    method: Cluster
    dtype: str
    shape: tuple[int, ...]
    bits: float

    @property
    def parts(self) -> Mapping[str, Part]:
        geometry = Geometry.of(self.shape, self.method.unit)
        by_group = geometry.lead + (geometry.groups(self.method.group), 1 << self.method.bits)
        return {"": Part("U8", self.shape), CODEBOOK: Part(self.dtype, by_group)}

    def apply(self, block: Block) -> Values:
        new = np.empty_like(block.values)
        for columns, values in self._groups(block.values):
            tables, codes = self._found(values)
            each = np.take_along_axis(tables, codes.astype(np.intp), axis=1)
            new[:, columns] = each.reshape(len(new), -1)
        return new

    def encode(self, block: Block) -> Pieces:
        codes, tables = np.empty(block.values.shape, np.uint8), list[Values]()
        for columns, values in self._groups(block.values):
            table, code = self._found(values)
            codes[:, columns] = code.reshape(len(codes), -1)
            tables.append(table.reshape(len(codes), -1, table.shape[1]))
        return {"": codes.reshape(-1), CODEBOOK: encode(np.concatenate(tables, axis=1).reshape(-1), self.dtype)}

    def _groups(self, values: Values) -> Iterator[tuple[slice, Values]]:
        """The columns of all whole groups, and each group as a row; then what is left at the rows' ends."""
        whole = values.shape[1] // self.method.group * self.method.group
        if whole:
            yield slice(0, whole), values[:, :whole].reshape(-1, self.method.group)
        if whole < values.shape[1]:
            yield slice(whole, None), values[:, whole:]

    def _found(self, values: Values) -> tuple[Values, npt.NDArray[np.uint8]]:
        """Each row's codebook, by code, and codes."""
        method = self.method
        exponents = np.frexp(np.abs(values).max(axis=1).astype(np.float64))[1]
        points = points_of_rows(values, exponents, zeros=not method.zeros)
        centroids = np.ldexp(lloyd(points, method.clusters, method.start, method.seed).centroids, exponents[:, None])
        codebooks = rounded(centroids, self.dtype).astype(float_of(self.dtype))
        return _table(codebooks, method.zeros), _codes(values, codebooks, method.zeros)


def _table(codebooks: Values, zeros: bool) -> Values:
    """By code: zero first where it has a code of its own."""
    none = np.zeros((*codebooks.shape[:-1], 1), codebooks.dtype)
    return np.concatenate([none, codebooks], axis=-1) if zeros else codebooks


def _codes(values: Values, codebooks: Values, zeros: bool) -> npt.NDArray[np.uint8]:
    """Of the nearest in the row's codebook, or in the one for all rows, ascending: how many middles between its values
    lie under each weight.

    Counting them takes a tenth of the time of a binary search for 16 levels, and no more for 256.
    """
    middles = codebooks[..., :-1] / 2 + codebooks[..., 1:] / 2
    # Between neighbours there is no middle: it is the upper one, and the upper one would get the lower one's code.
    middles = np.where(middles >= codebooks[..., 1:], codebooks[..., :-1], middles)
    codes = np.full(values.shape, zeros, np.uint8)
    for number in range(middles.shape[-1]):
        codes += values > middles[..., number, None]
    if zeros:
        codes[values == 0] = 0
    return codes
