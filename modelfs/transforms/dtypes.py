"""Numbers as files store them ↔ float32 or float64 to compute with, by safetensors' names of the types.

Rule: decoding is exact. Encoding takes the nearest value of the type (ties to even, also from float64), and a finite
number never becomes infinite: it saturates at the type's largest. NaN stays NaN, and inf inf where the type has one.
"""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Buffer: TypeAlias = bytes | bytearray | memoryview
Values: TypeAlias = npt.NDArray[np.floating[Any]]
"""float64 for F64, float32 for all others."""

BITS = MappingProxyType({"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8})
"""The types that transforms take, with the bits of one element. All others are left alone."""

_STORAGE = MappingProxyType({"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"})
_OF_NUMPY = MappingProxyType({8: "F64", 4: "F32", 2: "F16"})
_F16_MAX, _F32_MAX, _E4M3_MAX = 65504.0, float(np.finfo(np.float32).max), 448.0
_BF16_MAX = 0x7F7F
LARGEST = MappingProxyType({"F64": float(np.finfo(np.float64).max), "F32": _F32_MAX, "F16": _F16_MAX,
                            "BF16": float.fromhex("0x1.fep127"), "F8_E4M3": _E4M3_MAX})
"""The largest finite value of each type."""


def _e4m3_table() -> npt.NDArray[np.float32]:
    """OCP 8-bit floating point specification, E4M3: bias 7, no infinities, NaN only where all but the sign is set."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    table = np.where(exponent == 0, mantissa / 8 * 2.0 ** -6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    table[127] = np.nan
    return np.concatenate([table, -table]).astype(np.float32)


_E4M3 = _e4m3_table()


def name_of(dtype: np.dtype[Any]) -> str | None:
    """The name of numpy's float of either byte order; None for everything else, which transforms leave alone."""
    return _OF_NUMPY.get(dtype.itemsize) if dtype.kind == "f" else None


def float_of(dtype: str) -> type[np.floating[Any]]:
    return np.float64 if dtype == "F64" else np.float32


def stored_as(dtype: str) -> np.dtype[Any]:
    """numpy's type of the elements as they lie in a file; unsigned integers for what numpy does not have."""
    return np.dtype(_STORAGE[dtype])


def decode(data: Buffer, dtype: str) -> Values:
    """data: whole elements, little-endian. The result may share data's memory, and then cannot be written to."""
    stored = np.frombuffer(data, stored_as(dtype))
    stored.flags.writeable = False
    return decode_array(stored, dtype)


def decode_array(stored: npt.NDArray[Any], dtype: str) -> Values:
    """stored: elements as stored_as says, in either byte order, of any shape."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E4M3":
        return np.asarray(_E4M3[stored])
    return stored.astype(float_of(dtype), copy=False)


def encode(values: Values, dtype: str) -> npt.NDArray[Any]:
    """The elements as stored_as says, of values' shape."""
    if dtype == "BF16":
        return _to_bf16(_single(values)).astype(stored_as(dtype), copy=False)
    if dtype == "F8_E4M3":
        return _to_e4m3(_single(values))
    if dtype == "F64" or (dtype == "F32" and values.dtype == np.float32):
        return values.astype(stored_as(dtype), copy=False)
    limit = LARGEST[dtype]
    with np.errstate(over="ignore"):
        narrow = values.astype(stored_as(dtype))
    beyond = np.isinf(narrow) & np.isfinite(values)
    if beyond.any():
        narrow[beyond] = np.copysign(limit, values[beyond])
    return narrow


def rounded(values: Values, dtype: str) -> Values:
    """The nearest values of dtype, in values' own float type."""
    if dtype == "F64" or (dtype == "F32" and values.dtype == np.float32):
        return values
    return decode_array(encode(values, dtype), dtype).astype(values.dtype, copy=False)


def native_order(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """array in this machine's byte order, itself where it is; for big-endian npy files."""
    big = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return array.astype(array.dtype.newbyteorder("=")) if big != (sys.byteorder == "big") else array


def _single(values: Values) -> npt.NDArray[np.float32]:
    """float32 from which rounding once more gives what rounding values once would: to odd, not to even.

    Rounded twice to even, 1 + 2**-8 + 2**-40 would become a tie in float32, and 1 in bf16 instead of 1 + 2**-7.
    """
    if values.dtype == np.float32:
        return np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    inexact = (single != values) & ~np.isnan(values)
    bits = single.view(np.uint32)
    bits -= (inexact & (np.abs(single) > np.abs(values))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return single


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    even += np.uint32(0x7FFF)
    even += bits
    codes = (even >> np.uint32(16)).astype(np.uint16)
    special = ~np.isfinite(values)
    if special.any():
        kept = (bits[special] >> np.uint32(16)).astype(np.uint16)
        codes[special] = np.where(np.isnan(values[special]), kept | np.uint16(0x40), kept)
    beyond = ((codes & np.uint16(0x7FFF)) > _BF16_MAX) & ~special
    if beyond.any():
        codes[beyond] = (codes[beyond] & np.uint16(0x8000)) | np.uint16(_BF16_MAX)
    return codes


def _to_e4m3(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Normal numbers by rounding float32's bits at the third of the mantissa; below 2**-6 steps are 2**-9."""
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude + np.uint32(0x7FFFF) + ((magnitude >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    small = magnitude < np.uint32(121 << 23)
    with np.errstate(invalid="ignore"):
        steps = np.rint(np.where(small, np.abs(values), 0) * np.float32(512)).astype(np.uint32)
    codes = np.where(small, steps, np.minimum(normal, np.uint32((120 << 3) + 126)) - np.uint32(120 << 3))
    codes = np.where(np.isnan(values), np.uint32(127), codes)
    codes |= (bits >> np.uint32(31)) << np.uint32(7)
    return np.asarray(codes, np.uint8)
