"""Whether another entropy coder than zstd's Huffman coding would do better on what modelfs stores.

On the exponent plane of bf16 weights and on palette indexes, in chunks as modelfs has them: stored bytes against the
entropy, decoding with one and two threads, and how fast bf16 weights would load over links of 1, 10 and 100 Gbit/s
(the slower of link and decoding on two cores, the mantissas' plane and the merge included). Coders that are not
installed are named and left out: pip install constriction pyppmd pcodec brotli isal. `--json FILE`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.compact import k_means, nearest
from modelfs.codecs.blocks import Zstd
from modelfs.codecs.planes import merge

Symbols = npt.NDArray[np.uint8]
COUNT = 1 << 20
CHUNKS = 4
LINKS = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class Coder:
    """prepare: symbols → stored bytes and what decodes them. Raises ImportError where its package is missing."""

    name: str
    prepare: Callable[[Symbols], tuple[int, Callable[[], object]]]


def zstd(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder = Zstd()
    stored = coder.compress(symbols)
    return len(stored), lambda: coder.decompress(memoryview(stored), len(symbols))


def deflate(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    stored = coder.compress(symbols.data) + coder.flush()
    return len(stored), lambda: zlib.decompress(stored, -15, len(symbols))


def igzip(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder: Any = importlib.import_module("isal.isal_zlib")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    stored = packer.compress(symbols.data) + packer.flush()
    return len(stored), lambda: coder.decompress(stored, -15, len(symbols))


def brotli(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder: Any = importlib.import_module("brotli")
    stored = coder.compress(symbols.tobytes(), quality=5, lgwin=16)
    return len(stored), lambda: coder.decompress(stored)


def ppmd(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder: Any = importlib.import_module("pyppmd")
    stored = coder.compress(symbols.tobytes(), max_order=2, mem_size=1 << 20)
    return len(stored), lambda: coder.decompress(stored, max_order=2, mem_size=1 << 20)


def pco(symbols: Symbols) -> tuple[int, Callable[[], object]]:
    coder: Any = importlib.import_module("pcodec")
    stored = coder.standalone.simple_compress(symbols, coder.ChunkConfig(
        mode_spec=coder.ModeSpec.classic(), delta_spec=coder.DeltaSpec.no_op(), enable_8_bit=True))
    out = np.empty_like(symbols)
    return len(stored), lambda: coder.standalone.simple_decompress_into(stored, out)


def constriction(symbols: Symbols, *, ans: bool) -> tuple[int, Callable[[], object]]:
    """ans: as a stack; else range coding, which is a queue."""
    stream: Any = importlib.import_module("constriction").stream
    counts = np.bincount(symbols, minlength=256).astype(np.float32)
    model = stream.model.Categorical(counts / counts.sum(), perfect=False)
    coder = stream.stack.AnsCoder() if ans else stream.queue.RangeEncoder()
    (coder.encode_reverse if ans else coder.encode)(symbols.astype(np.int32), model)
    stored = coder.get_compressed()
    decoder = stream.stack.AnsCoder if ans else stream.queue.RangeDecoder
    return stored.nbytes, lambda: decoder(stored).decode(model, len(symbols))


CODERS = (Coder("zstd (as now)", zstd), Coder("deflate, Huffman only", deflate), Coder("the same by igzip", igzip),
          Coder("brotli 5", brotli), Coder("constriction ANS", partial(constriction, ans=True)),
          Coder("constriction range", partial(constriction, ans=False)),
          Coder("pcodec", pco), Coder("pyppmd order 2", ppmd))


def entropy(symbols: Symbols) -> float:
    """Of one symbol, as a part of a byte."""
    shares = np.bincount(symbols, minlength=256) / len(symbols)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() / 8)


def seconds(work: Callable[[], object], times: int = 5) -> float:
    found = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - start)
    return found


def speeds(decoders: list[Callable[[], object]], size: int) -> tuple[float, float]:
    """Bytes a second of all decoders with one thread and with two."""
    found = []
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            found.append(size / seconds(lambda pool=pool: list(pool.map(lambda decode: decode(), decoders))))  # type: ignore[misc]
    return found[0], found[1]


def measure(coder: Coder, chunks: list[Symbols], low: Symbols | None) -> dict[str, float]:
    """low: the other plane, where chunks are one of two: the decoders then make the 2-byte elements."""
    prepared = [coder.prepare(chunk) for chunk in chunks]
    stored = sum(size for size, _ in prepared) / sum(map(len, chunks))
    one, two = speeds([decode for _, decode in prepared], sum(map(len, chunks)))
    row = {"stored": stored, "one_GBps": one / 1e9, "two_GBps": two / 1e9}
    if low is None:
        return row

    def whole(decode: Callable[[], object], chunk: Symbols) -> Callable[[], object]:
        out = np.empty(2 * len(chunk), np.uint8)

        def work() -> None:
            decode()
            merge([low, chunk], out)
        return work

    both = 2 * sum(map(len, chunks))
    _, two = speeds([whole(decode, chunk) for (_, decode), chunk in zip(prepared, chunks, strict=True)], both)
    ratio = (1 + stored) / 2
    return row | {"ratio": ratio, "bf16_GBps": two / 1e9} | {
        f"load_{link}": min(link / 8 / ratio, two / 1e9) for link in LINKS}


def inputs() -> dict[str, tuple[list[Symbols], Symbols | None]]:
    values = np.random.default_rng(1).standard_normal(CHUNKS * COUNT, dtype=np.float32) * np.float32(0.02)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16).reshape(CHUNKS, COUNT)
    centres = k_means(values, 32)
    indexes = np.searchsorted(centres, nearest(values, centres)).astype(np.uint8).reshape(CHUNKS, COUNT)
    few = k_means(values, 16)
    nibbles = np.searchsorted(few, nearest(values, few)).astype(np.uint8).reshape(CHUNKS, COUNT)
    return {"exponents of bf16": ([(each >> 8).astype(np.uint8) for each in bf16], bf16[0].astype(np.uint8)),
            "32 levels, k-means": (list(indexes), None), "16 levels, k-means": (list(nibbles), None)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Entropy coders on exponent planes and palette indexes.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for data, (chunks, low) in inputs().items():
        bound = entropy(np.concatenate(chunks))
        print(f"\n{data}: entropy {bound:.4f}" + (f", so bf16 {(1 + bound) / 2:.4f}" if low is not None else ""))
        for coder in CODERS:
            try:
                row = measure(coder, chunks, low)
            except ImportError as error:
                print(f"  {coder.name:22} not installed ({error.name})")
                continue
            rows.append({"data": data, "coder": coder.name, "entropy": bound, **row})
            shown = (f"{name} {value:.{4 if name in ('stored', 'ratio') else 3}f}" for name, value in row.items())
            print(f"  {coder.name:22} " + "  ".join(shown), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
