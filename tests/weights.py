"""Chunks of the kinds that the compact codecs are for, as the usual ways to prune, cluster and quantise make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from modelfs.codecs.floats import BF16, F16, F32, Float32s, FloatKind

KINDS = {kind.name: kind for kind in (F16, BF16, F32)}


def gaussian(count: int, seed: int = 7) -> Float32s:
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.02)


def stored_as(values: npt.NDArray[Any], kind: FloatKind) -> memoryview:
    return memoryview(kind.rounded(np.ascontiguousarray(values, np.float32).reshape(-1)).tobytes())


def clustered(values: Float32s, levels: int) -> Float32s:
    """Each value replaced by the nearest of its quantiles."""
    centres = np.quantile(values, (np.arange(levels) + 0.5) / levels).astype(np.float32)
    return centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]


def pruned(values: Float32s, share: float) -> Float32s:
    """The smallest share of them zero."""
    return np.where(np.abs(values) < np.quantile(np.abs(values), share), np.float32(0), values)


def pruned_two_of_four(values: Float32s) -> Float32s:
    fours = values.reshape(-1, 4)
    order = np.argsort(np.abs(fours), axis=1)
    kept = fours.copy()
    np.put_along_axis(kept, order[:, :2], np.float32(0), axis=1)
    return kept.reshape(-1)


def quantised(values: Float32s, bits: int, group: int, scale: FloatKind = F16, *, zero_point: bool = False,
              minus_zeros: bool = False) -> Float32s:
    """Rounded to whole multiples of a scale for each group, which is rounded itself. minus_zeros: small negative ones
    become -0.0, as where nobody goes through integers."""
    groups, most = values.reshape(-1, group), 2 ** (bits - 1) - 1
    if zero_point:
        low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
        scales = scale.single(scale.rounded((high - low) / np.float32(2 * most + 1)))[:, None]
        zero = np.rint(-low[:, None] / scales)
        multiples = np.clip(np.rint(groups / scales) + zero, 0, 2 * most + 1) - zero
    else:
        scales = scale.single(scale.rounded(np.abs(groups).max(axis=1) / np.float32(most)))[:, None]
        multiples = np.clip(np.rint(groups / scales), -most - 1, most)
    products: Float32s = (multiples * scales).reshape(-1).astype(np.float32)
    return products if minus_zeros else products + np.float32(0)


def example_of(codec: str, count: int = 2048) -> memoryview:
    """A chunk that the codec does not decline, with a byte or more behind its last whole element if it has any."""
    kind, _, of = codec.partition("-")
    if kind == "affine":
        return memoryview(bytes(stored_as(quantised(gaussian(count), 4, 64), KINDS[of])) + b"x")
    if kind[:-1] in ("palette", "sparse"):
        width = int(kind[-1])
        numbers = np.random.default_rng(3).integers(0, 20, count).astype(f"<u{width}") * (3 if width == 1 else 1001)
        if kind.startswith("sparse"):
            numbers[np.random.default_rng(4).random(count) < 0.6] = 0
            numbers[-1] = 1
        return memoryview(numbers.astype(f"<u{width}").tobytes() + bytes(range(1, width)))
    bits = gaussian(count).view(np.uint32) >> 16 << 16
    return memoryview(bits.astype("<u4").tobytes() + b"abc")
