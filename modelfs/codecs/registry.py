"""The codecs by their names, and which of them a chunk is stored with.

Rule: a name never changes its meaning (docs/format.md). The choice is by trial: the smallest wins, unless one that
is cheaper to decode comes within 2 % of it.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from modelfs.codecs.affine import AffineCodec
from modelfs.codecs.blocks import Zstd, sample_of
from modelfs.codecs.codec import Codec, unknown_codec
from modelfs.codecs.floats import BF16, F16, F32
from modelfs.codecs.palette import PaletteCodec
from modelfs.codecs.parts import PALETTE, PLANES, SPARSE, TOLERANCE, ZSTD, CompactCodec
from modelfs.codecs.plain import Lz4Codec, RawCodec, ZstdCodec
from modelfs.codecs.planes import LZ4 as LZ4_PLANES
from modelfs.codecs.planes import ZSTD as ZSTD_PLANES
from modelfs.codecs.planes import PlanesCodec
from modelfs.codecs.sparse import SparseCodec

# The trial sees at most 8 slices of 4 KiB: benchmarks/codecs.py compares that with a trial on everything.
_SAMPLE_SLICES = 8

_ZSTD = Zstd()
_ZSTD_CODEC = ZstdCodec(_ZSTD)
_PLANES = {width: PlanesCodec(f"planes{width}-zstd", width, ZSTD_PLANES, _ZSTD) for width in (2, 4)}
_PALETTES = {width: PaletteCodec(f"palette{width}", width, _ZSTD) for width in (1, 2, 4, 8)}
_SPARSE = {width: SparseCodec(f"sparse{width}", width, _ZSTD, {
    PALETTE: palette, **({PLANES: _PLANES[width]} if width in _PLANES else {ZSTD: _ZSTD_CODEC})})
    for width, palette in _PALETTES.items()}
_AFFINE = {kind: AffineCodec(f"affine-{kind.name}", kind, {ZSTD: _ZSTD_CODEC}, {
    ZSTD: _ZSTD_CODEC, PALETTE: _PALETTES[1], SPARSE: _SPARSE[1]}) for kind in (F16, BF16, F32)}

_ALL: tuple[Codec, ...] = (
    RawCodec(), Lz4Codec(), *_PALETTES.values(),
    *(PlanesCodec(f"planes{width}-lz4", width, LZ4_PLANES, _ZSTD) for width in _PLANES),
    _ZSTD_CODEC, *_PLANES.values(), *_SPARSE.values(), *_AFFINE.values())
CODECS: MappingProxyType[str, Codec] = MappingProxyType({codec.name: codec for codec in _ALL})
"""In the order of what they cost to decode, the cheapest first."""

_ORDINARY = MappingProxyType({width: (CODECS["lz4"], _ZSTD_CODEC, *(
    CODECS[f"planes{each}-{method}"] for method in ("lz4", "zstd") for each in widths))
    for width, widths in {0: (2, 4), 1: (), 2: (2,), 4: (4,), 8: (2, 4)}.items()})
_COMPACT: MappingProxyType[int, tuple[CompactCodec, ...]] = MappingProxyType({
    width: tuple(codec[each] for codec in (_PALETTES, _SPARSE) for each in widths)
    for width, widths in {0: (2, 4), 1: (1,), 2: (2,), 4: (4,), 8: (8,)}.items()})
# Slices cut groups in two: a sample says little about them.
_GROUPED: MappingProxyType[int, tuple[CompactCodec, ...]] = MappingProxyType({
    0: (), 1: (), 2: (_AFFINE[F16], _AFFINE[BF16]), 4: (_AFFINE[F32],), 8: ()})


def codec_named(name: str) -> Codec:
    """Raises Unsupported, naming it, for a codec that this modelfs does not have."""
    codec = CODECS.get(name)
    if codec is None:
        raise unknown_codec(name)
    return codec


def encode_chunk(data: memoryview, width: int) -> tuple[str, bytes]:
    """The codec's name and the stored bytes; ("raw", data) where nothing gains 2 %.

    width: bytes of one element: 1, 2, 4, 8, or 0 where it is not known (formats.Segment).
    """
    sample = sample_of(np.frombuffer(data, np.uint8), _SAMPLE_SLICES).data
    if len(sample) == len(data):
        return best_of(data, width)
    tried = _encoded(sample, [*_ORDINARY[width], *_fitting(sample, _COMPACT[width])])
    results = _encoded(data, _fitting(data, _GROUPED[width]))
    while True:
        name, encoded = _choice(sample, tried)
        if results and min(map(len, results.values())) * TOLERANCE * len(sample) < len(encoded) * len(data):
            break
        # Slices cannot show a repeat that is longer than they are; a search passes noise at 4.8 GB/s, so look.
        results |= {"zstd": _ZSTD.search(data)} if name == "raw" else _encoded(data, [CODECS[name]])
        if name in results or name not in tried:
            break
        del tried[name]  # a palette whose sample did not show all its levels
    return _choice(data, results)


def best_of(data: memoryview, width: int) -> tuple[str, bytes]:
    """As encode_chunk, by encoding all of data with every candidate."""
    special = _fitting(data, (*_COMPACT[width], *_GROUPED[width]))
    return _choice(data, _encoded(data, [*_ORDINARY[width], *special]))


def _fitting(data: memoryview, codecs: tuple[CompactCodec, ...]) -> list[Codec]:
    return [codec for codec in codecs if codec.fits(data)]


def _encoded(data: memoryview, codecs: list[Codec]) -> dict[str, bytes]:
    tried = ((codec.name, codec.encode(data)) for codec in codecs)
    return {name: stored for name, stored in tried if stored is not None}


def _choice(data: memoryview, results: dict[str, bytes]) -> tuple[str, bytes]:
    """Of results and data itself."""
    bar = min([len(data), *map(len, results.values())]) * TOLERANCE
    if len(data) <= bar:
        return "raw", bytes(data)
    return next((name, results[name]) for name in CODECS if name in results and len(results[name]) <= bar)
