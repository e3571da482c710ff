"""Pruning, then quantisation or clustering of what is left: with clusters it is Deep Compression (Han et al. 2016).

Rule: what the first transform made zero is zero in the end, and no cluster spends itself on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from modelfs.transforms.blocks import Block, Tensor
from modelfs.transforms.cluster import Cluster
from modelfs.transforms.dtypes import BITS, Values
from modelfs.transforms.prune import Prune, PrunePattern
from modelfs.transforms.quantise import Affine
from modelfs.transforms.rounding import Rounding
from modelfs.transforms.transform import Fitted, LeftAlone, Part, Pieces


@dataclass(frozen=True, slots=True)
class Chain:
    first: Prune | PrunePattern
    second: Affine | Cluster | Rounding

    @property
    def name(self) -> str:
        return f"{self.first.name} + {self.second.name}"

    @property
    def unit(self) -> int:
        return math.lcm(self.first.unit, self.second.unit)

    def fit(self, tensor: Tensor) -> Fitted | LeftAlone:
        first = self.first.fit(tensor)
        if isinstance(first, LeftAlone):
            return first
        second = replace(self.second, zeros=True) if isinstance(self.second, Cluster) else self.second
        fitted = second.fit(_Between(tensor, first, self.first.unit))
        if isinstance(fitted, LeftAlone):
            return fitted
        return FittedChain(first, fitted, 1 + (first.bits - 1) / BITS[tensor.dtype] * fitted.bits)


@dataclass(frozen=True, slots=True)
class FittedChain:
    """bits: a bitmap of what is left, and the second's bits for that."""

    first: Fitted
    second: Fitted
    bits: float

    @property
    def parts(self) -> Mapping[str, Part]:
        return self.second.parts

    def apply(self, block: Block) -> Values:
        return self.second.apply(self._between(block))

    def encode(self, block: Block) -> Pieces:
        return self.second.encode(self._between(block))

    def _between(self, block: Block) -> Block:
        return Block(block.start, self.first.apply(block))


@dataclass(frozen=True, slots=True)
class _Between:
    """A tensor as the first transform leaves it."""

    tensor: Tensor
    first: Fitted
    first_unit: int

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def blocks(self, unit: int) -> Iterator[Block]:
        for block in self.tensor.blocks(math.lcm(unit, self.first_unit)):
            yield Block(block.start, self.first.apply(block))
