"""Rounding to a smaller float: bf16, fp16 and fp8 E4M3 (OCP 8-bit floating point specification), nearest, ties to even.

Rule: rounding again changes nothing. What is beyond the smaller type's largest value saturates there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modelfs.transforms.blocks import Block, Tensor
from modelfs.transforms.dtypes import BITS, LARGEST, Values, encode, rounded
from modelfs.transforms.quantise import SCALE
from modelfs.transforms.transform import Fitted, LeftAlone, Part, Pieces, extent_of

SHORT = {"bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3"}
_LEAST_EXPONENT, _MOST_EXPONENT = -126, 127


@dataclass(frozen=True, slots=True)
class Rounding:
    """target: a name of SHORT. scaled (fp8): the tensor is divided by a power of two first, by which its largest value
    lies under 448, and multiplied again after; a power of two loses nothing in any dtype. Without it small weights,
    under 2**-6, have fewer than four significant bits, and those under 2**-10 become zero."""

    target: str
    scaled: bool = False

    @property
    def name(self) -> str:
        return self.target + (" scaled" if self.scaled else "")

    @property
    def unit(self) -> int:
        return 1

    @property
    def stored(self) -> str:
        return SHORT[self.target]

    def fit(self, tensor: Tensor) -> Fitted | LeftAlone:
        stored = self.stored
        extent = extent_of(tensor, BITS[stored])
        if isinstance(extent, LeftAlone):
            return extent
        exponent = 0
        if self.scaled and extent.largest:
            fraction, exponent = math.frexp(extent.largest / LARGEST[stored])
            exponent -= fraction == 0.5
            exponent = min(max(exponent, _LEAST_EXPONENT), _MOST_EXPONENT)
        return FittedRounding(stored, tensor.dtype, tensor.shape, exponent if self.scaled else None)


@dataclass(frozen=True, slots=True)
class FittedRounding:
    """exponent: of the power of two that the stored numbers are multiplied by; None where there is none."""

    stored: str
    dtype: str
    shape: tuple[int, ...]
    exponent: int | None

    @property
    def bits(self) -> float:
        return BITS[self.stored]

    @property
    def parts(self) -> Mapping[str, Part]:
        codes = {"": Part(self.stored, self.shape)}
        return codes if self.exponent is None else codes | {SCALE: Part("F32", (1,))}

    def apply(self, block: Block) -> Values:
        small = rounded(self._divided(block.values), self.stored)
        if self.exponent is not None:
            small = small * small.dtype.type(2.0 ** self.exponent)
        return rounded(small, self.dtype)

    def encode(self, block: Block) -> Pieces:
        pieces = {"": encode(self._divided(block.values), self.stored).reshape(-1)}
        if self.exponent is not None and block.start == 0:
            pieces[SCALE] = np.array([2.0 ** self.exponent], np.float32)
        return pieces

    def _divided(self, values: Values) -> Values:
        return values if self.exponent is None else values * values.dtype.type(2.0 ** -self.exponent)
