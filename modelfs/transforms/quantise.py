"""Affine quantisation by groups along a row: 4- or 8-bit integers, a scale each group, with or without a zero point.

Rule: a weight moves by at most half of its group's scale (and the rounding to the tensor's dtype); zero stays zero. The
scale is fp16, rounded up, so that the largest magnitude is never clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfs.transforms.blocks import Block, Geometry, Tensor
from modelfs.transforms.dtypes import BITS, LARGEST, Values, rounded
from modelfs.transforms.transform import Fitted, LeftAlone, Part, Pieces, extent_of

SCALE, ZERO_POINT = "_scale", "_zero_point"
_SCALE_BITS = 16


@dataclass(frozen=True, slots=True)
class _Groups:
    """codes: rows, groups, elements, of the block's float type: what is multiplied, zero point subtracted already."""

    codes: Values
    scales: npt.NDArray[np.float16]
    zero_points: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Affine:
    """bits: 4 or 8. group: elements that share a scale, an even number.

    Symmetric: codes from -7 to 7, or -127 to 127, times the scale. zero_point: codes from 0 to 15, or 255, less the
    zero point, times the scale: half the step where a group's weights all have one sign, else little or nothing.
    """

    bits: int = 8
    group: int = 128
    zero_point: bool = False

    @property
    def name(self) -> str:
        return f"int{self.bits}" + (f" group {self.group}" if self.group != 128 else "") + (
            " zero point" if self.zero_point else "")

    @property
    def unit(self) -> int:
        return self.group

    @property
    def steps(self) -> int:
        return (1 << self.bits) - 1 if self.zero_point else (1 << (self.bits - 1)) - 1

    def fit(self, tensor: Tensor) -> Fitted | LeftAlone:
        extent = extent_of(tensor, self.bits)
        if isinstance(extent, LeftAlone):
            return extent
        width = max(extent.most, 0.0) - min(extent.least, 0.0) if self.zero_point else extent.largest
        if width / self.steps > LARGEST["F16"]:
            return LeftAlone("values too large for a scale of fp16", BITS[tensor.dtype])
        geometry = Geometry.of(tensor.shape, self.unit)
        overhead = _SCALE_BITS + (self.bits if self.zero_point else 0)
        groups = geometry.rows * geometry.groups(self.group)
        return FittedAffine(self, tensor.dtype, tensor.shape, self.bits + overhead * groups / extent.count)


@dataclass(frozen=True, slots=True)
class FittedAffine:
    method: Affine
    dtype: str
    shape: tuple[int, ...]
    bits: float

    @property
    def parts(self) -> Mapping[str, Part]:
        """int8: codes as I8 (U8 with a zero point). int4: two codes a byte, the first in the low half, as U8 (symmetric
        ones plus 8); a row of odd length ends with half a byte of no meaning."""
        geometry = Geometry.of(self.shape, self.method.unit)
        by_group = geometry.lead + (geometry.groups(self.method.group),)
        if self.method.bits == 8:
            found = {"": Part("U8" if self.method.zero_point else "I8", self.shape)}
        else:
            found = {"": Part("U8", geometry.lead + ((geometry.columns + 1) // 2,))}
        found[SCALE] = Part("F16", by_group)
        if self.method.zero_point:
            found[ZERO_POINT] = Part("U8", by_group)
        return found

    def apply(self, block: Block) -> Values:
        groups = self._quantised(block.values)
        values = groups.codes
        values *= groups.scales.astype(values.dtype)[:, :, None]
        rows, columns = block.values.shape
        return rounded(values.reshape(rows, -1)[:, :columns], self.dtype)

    def encode(self, block: Block) -> Pieces:
        groups = self._quantised(block.values)
        rows, columns = block.values.shape
        codes, found = groups.codes, dict[str, npt.NDArray[Any]]({SCALE: groups.scales.reshape(-1)})
        if groups.zero_points is not None:
            codes += groups.zero_points[:, :, None]
            found[ZERO_POINT] = groups.zero_points.reshape(-1).astype(np.uint8)
        elif self.method.bits == 4:
            codes += 8
        codes = codes.reshape(rows, -1)
        if self.method.bits == 8:
            found[""] = codes[:, :columns].astype(np.uint8 if self.method.zero_point else np.int8).reshape(-1)
        else:
            found[""] = _packed(codes[:, :columns + columns % 2].astype(np.uint8))
        return found

    def _quantised(self, values: Values) -> _Groups:
        rows, columns = values.shape
        padding = -columns % self.method.group
        padded = np.pad(values, ((0, 0), (0, padding))) if padding else values
        grouped = padded.reshape(rows, -1, self.method.group)
        if self.method.zero_point:
            low = np.minimum(grouped.min(axis=2), 0).astype(np.float64)
            high = np.maximum(grouped.max(axis=2), 0).astype(np.float64)
        else:
            high = np.maximum(grouped.max(axis=2), -grouped.min(axis=2)).astype(np.float64)
            low = np.zeros_like(high)
        # abs: the larger of 0.0 and -0.0 may be either
        scales = _rounded_up(np.abs(high - low) / self.method.steps)
        divisors = np.where(scales == 0, np.float16(1), scales).astype(values.dtype)
        codes = grouped / divisors[:, :, None]
        np.rint(codes, out=codes)
        zero_points = np.rint(-low / divisors).astype(values.dtype)
        # symmetric groups have low = 0, so no zero point
        least = -zero_points[:, :, None]
        np.clip(codes, least if self.method.zero_point else -self.method.steps, least + self.method.steps, out=codes)
        # -0.0 + 0.0 is 0.0: what is rounded to nothing has no sign, and a pruned weight stays one pattern
        codes += 0
        return _Groups(codes, scales, zero_points if self.method.zero_point else None)


def _rounded_up(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    nearest = scales.astype(np.float16)
    return np.where(nearest < scales, np.nextafter(nearest, np.float16(np.inf)), nearest)


def _packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Rows of even length: after one that is odd in the tensor comes what its last group was filled up with."""
    flat = codes.reshape(-1)
    return flat[::2] | flat[1::2] << np.uint8(4)
