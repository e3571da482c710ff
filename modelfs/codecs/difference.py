"""A chunk as the difference to another one, as long as it: a fine-tune's weights to those they were trained from.

Elements are subtracted as unsigned integers, modulo 2^(8·width): a weight that moved a little is a few steps away on
the grid of its own exponent. A difference d of either sign is folded to 2|d| or 2|d| − 1, so that its upper bytes are
zeros, and stored by byte planes. bf16 moved by relative noise of σ = 1e-2 and 3e-2 comes to 0.190 and 0.286 of its
bytes, where an XOR, which flips all bits below a carry, comes to 0.236 and 0.344.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelfs.codecs.blocks import Zstd
from modelfs.codecs.codec import CodecError, unknown_codec
from modelfs.codecs.planes import ZSTD, PlanesCodec

LEAST_GAIN = 0.9
"""Reading a difference takes two chunks, so it is to save a tenth at least."""


class DifferenceCodec:
    """width: bytes of one element, 2 or 4."""

    def __init__(self, name: str, width: int, zstd: Zstd) -> None:
        self.name: str = name
        self._type = np.dtype(f"<u{width}")
        self._sign = np.dtype(f"<i{width}")
        self._planes = PlanesCodec(name, width, ZSTD, zstd)

    def encode(self, data: memoryview, base: memoryview) -> bytes | None:
        """base: as long as data. None where it would not come out smaller than data."""
        whole = len(data) // self._type.itemsize * self._type.itemsize
        new, old = self._elements(data[:whole]), self._elements(base[:whole])
        moved = (new - old).view(self._sign)
        folded = np.left_shift(moved, 1)
        np.bitwise_xor(folded, moved >> (8 * self._type.itemsize - 1), out=folded)
        return self._planes.encode(memoryview(folded.tobytes() + bytes(data[whole:])))

    def decode(self, stored: memoryview, base: memoryview, out: memoryview) -> None:
        """As Codec.decode; base: decoded. Raises CodecError."""
        if len(base) != len(out):
            raise CodecError(f"a base of {len(base)} bytes for a chunk of {len(out)}")
        self._planes.decode(stored, out)
        whole = len(out) // self._type.itemsize * self._type.itemsize
        new = self._elements(out[:whole])
        sign = -(new & 1).view(self._sign)
        np.right_shift(new, 1, out=new)
        np.bitwise_xor(new, sign.view(self._type), out=new)
        np.add(new, self._elements(base[:whole]), out=new)

    def _elements(self, data: memoryview) -> NDArray[Any]:
        return np.frombuffer(data, self._type)


_ZSTD = Zstd()
DIFFERENCES: MappingProxyType[str, DifferenceCodec] = MappingProxyType({codec.name: codec for codec in (
    DifferenceCodec("difference2", 2, _ZSTD), DifferenceCodec("difference4", 4, _ZSTD))})


def difference_named(name: str) -> DifferenceCodec:
    """Raises Unsupported, naming it, for a codec with a base that this modelfs does not have."""
    codec = DIFFERENCES.get(name)
    if codec is None:
        raise unknown_codec(name, ", which takes a base")
    return codec


def encode_difference(data: memoryview, base: memoryview, width: int) -> tuple[str, bytes] | None:
    """The codec's name and the stored bytes. None for elements of another width than 2 or 4, where the two are not
    equally long, and where it would come out no smaller than data."""
    codec = DIFFERENCES.get(f"difference{width}")
    if codec is None or len(data) != len(base):
        return None
    stored = codec.encode(data, base)
    return None if stored is None else (codec.name, stored)
