"""What pruned, clustered and quantised weights cost to store and to read: a million Gaussian ones, one 2 MiB chunk.

Bits are of the whole stored chunk; one thread; speeds are of decoded bytes, by processor time, and decoding is also
given as a part of np.copyto on 256 MiB in the same run. `--json FILE` writes every row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.codecs import best, copy_speed
from modelfs.codecs import codec_named, encode_chunk
from modelfs.codecs.floats import BF16, F16, F32, Float32s, FloatKind
from modelfs.units import MiB

COUNT = 1 << 20
BARS = {"16 levels, k-means": 4.1, "16 levels, quantiles": 4.1, "int4, groups of 128": 4.3, "50 % pruned": 7.3}
"""The most bits a weight that fp16 may take."""


def quantiles(values: Float32s, levels: int) -> Float32s:
    return np.quantile(values, (np.arange(levels) + 0.5) / levels).astype(np.float32)


def nearest(values: Float32s, centres: Float32s) -> Float32s:
    return centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]


def k_means(values: Float32s, levels: int, rounds: int = 40) -> Float32s:
    centres, ordered = quantiles(values, levels), np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(rounds):
        ends = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        centres = (np.diff(sums[ends]) / np.diff(ends)).astype(np.float32)
    return centres


def pruned(values: Float32s, share: float) -> Float32s:
    return np.where(np.abs(values) < np.quantile(np.abs(values), share), np.float32(0), values)


def two_of_four(values: Float32s) -> Float32s:
    fours = values.reshape(-1, 4).copy()
    np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, :2], np.float32(0), axis=1)
    return fours.reshape(-1)


def symmetric(values: Float32s, bits: int, group: int) -> Float32s:
    groups, most = values.reshape(-1, group), np.float32(2 ** (bits - 1) - 1)
    scales = (np.abs(groups).max(axis=1, keepdims=True) / most).astype(np.float16).astype(np.float32)
    return np.asarray(np.rint(groups / scales) * scales + np.float32(0), np.float32).reshape(-1)


def with_zero_point(values: Float32s, bits: int, group: int) -> Float32s:
    groups, most = values.reshape(-1, group), np.float32(2 ** bits - 1)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scales = ((high - low) / most).astype(np.float16).astype(np.float32)
    zero = np.rint(-low / scales)
    return np.asarray((np.clip(np.rint(groups / scales) + zero, 0, most) - zero) * scales, np.float32).reshape(-1)


def kinds(values: Float32s) -> dict[str, Float32s]:
    few = pruned(values, 0.9)
    return {
        "as they are": values,
        "16 levels, k-means": nearest(values, k_means(values, 16)),
        "16 levels, quantiles": nearest(values, quantiles(values, 16)),
        "256 levels, k-means": nearest(values, k_means(values, 256)),
        "int4, groups of 128": symmetric(values, 4, 128),
        "int4, zero points, of 128": with_zero_point(values, 4, 128),
        "int8, groups of 128": symmetric(values, 8, 128),
        "50 % pruned": pruned(values, 0.5),
        "2 of 4 pruned": two_of_four(values),
        "90 % pruned": few,
        "50 % pruned, int8": symmetric(pruned(values, 0.5), 8, 128),
        "90 % pruned, int8": symmetric(few, 8, 128),
        "90 % pruned, 32 levels": np.where(few == 0, few, nearest(values, k_means(few[few != 0], 32))),
    }


def row_of(name: str, values: Float32s, kind: FloatKind, copy_Bps: float) -> dict[str, object]:
    data = memoryview(kind.rounded(values).tobytes())
    codec, stored = encode_chunk(data, kind.width)
    out: npt.NDArray[np.uint8] = np.empty(len(data), np.uint8)
    decode: Callable[[], object] = lambda: codec_named(codec).decode(memoryview(stored), out.data)  # noqa: E731
    decode_Bps = len(data) / best(decode, 9)
    assert out.data == data
    bits = 8 * len(stored) / len(values)
    bar = BARS.get(name) if kind is F16 else None
    return {"data": name, "elements": kind.name, "codec": codec, "bits": bits, "bar": bar,
            "met": None if bar is None else bits <= bar, "decode_GBps": decode_Bps / 1e9,
            "encode_MBps": len(data) / best(lambda: encode_chunk(data, kind.width), 3) / 1e6,
            "decode_of_copyto": decode_Bps / copy_Bps}


def main() -> None:
    parser = argparse.ArgumentParser(description="Bits a weight and speeds of the compact codecs, one thread.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    args = parser.parse_args()
    copy_Bps = copy_speed(256 * MiB)
    print(f"np.copyto of 256 MiB: {copy_Bps / 1e9:.1f} GB/s\n")
    print(f"{'weights':26} {'as':5} {'codec':13} {'bits':>7} {'bar':>12} {'encode MB/s':>12} {'decode GB/s':>12} "
          "÷copyto")
    values = np.random.default_rng(1).standard_normal(COUNT, dtype=np.float32) * np.float32(0.02)
    rows = []
    for kind in (F16, BF16, F32):
        for name, each in kinds(values).items():
            row = row_of(name, each, kind, copy_Bps)
            rows.append(row)
            bar = "" if row["bar"] is None else f"{row['bar']} {'met' if row['met'] else 'NOT MET'}"
            print(f"{name:26} {kind.name:5} {row['codec']:13} {row['bits']:7.3f} {bar:>12} {row['encode_MBps']:12.0f} "
                  f"{row['decode_GBps']:12.2f} {row['decode_of_copyto']:7.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"copyto_Bps": copy_Bps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
