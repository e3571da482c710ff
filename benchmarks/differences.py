"""What a fine-tune costs as differences to what it was made from: bf16 and fp32 weights, each moved by relative noise
N(0, σ); stored ÷ its bytes, beside byte planes and an XOR of the same planes, and how fast it decodes.

One thread; speeds are of decoded bytes, and as a part of np.copyto in the same run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.bars import Bar, show_bars
from benchmarks.codecs import best, copy_speed
from modelfs.codecs import codec_named, difference_named, encode_chunk, encode_difference
from modelfs.codecs.floats import BF16
from modelfs.units import MiB

CHUNK = 2 * MiB
ELEMENTS = 4 * MiB
BOUNDS = {1e-2: 0.26, 3e-2: 0.37}


def chunks(data: NDArray[np.generic]) -> list[memoryview]:
    raw = memoryview(data.tobytes())
    return [raw[at:at + CHUNK] for at in range(0, len(raw), CHUNK)]


def differences(new: list[memoryview], old: list[memoryview], width: int) -> list[tuple[str, bytes]]:
    found = [encode_difference(one, other, width) for one, other in zip(new, old, strict=True)]
    return [each for each in found if each is not None]


def stored(parts: list[tuple[str, bytes]], of: list[memoryview]) -> float:
    return sum(len(data) for _, data in parts) / sum(map(len, of))


def decoding(stored_parts: list[tuple[str, bytes]], old: list[memoryview]) -> Callable[[], None]:
    out = memoryview(bytearray(CHUNK))

    def run() -> None:
        for (name, data), base in zip(stored_parts, old, strict=True):
            difference_named(name).decode(memoryview(data), base, out)
    return run


def xored(new: list[memoryview], old: list[memoryview], width: int) -> float:
    both = [memoryview(np.bitwise_xor(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)).tobytes())
            for one, other in zip(new, old, strict=True)]
    return sum(len(codec_named(f"planes{width}-zstd").encode(each) or each) for each in both) / sum(map(len, new))


def main() -> None:
    pick, copy = np.random.default_rng(1), copy_speed(256 * MiB)
    before = pick.normal(0, 0.02, ELEMENTS).astype(np.float32)
    forms: dict[str, tuple[int, Callable[[NDArray[np.float32]], NDArray[np.generic]]]] = {
        "bf16": (2, BF16.rounded), "fp32": (4, lambda values: values)}
    bars: list[Bar] = []
    print(f"{'':12}{'difference':>12}{'xor':>8}{'planes':>8}{'decode GB/s':>13}{'÷ copy':>8}")
    for name, (width, form) in forms.items():
        start = form(before)
        old = chunks(start)
        first = (start.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else before
        for sigma in (1e-3, *BOUNDS, 1e-1):
            new = chunks(form(first * (1 + pick.normal(0, sigma, ELEMENTS)).astype(np.float32)))
            parts = differences(new, old, width)
            ratio = stored(parts, new)
            speed = sum(map(len, new)) / best(decoding(parts, old), 3)
            planes = stored([encode_chunk(each, width) for each in new], new)
            print(f"{name} {sigma:<7g}{ratio:12.3f}{xored(new, old, width):8.3f}{planes:8.3f}{speed / 1e9:13.2f}"
                  f"{speed / copy:8.2f}")
            if name == "bf16" and sigma in BOUNDS:
                bars.append(Bar(f"bf16 moved by {sigma:g}, stored ÷ its bytes", ratio, BOUNDS[sigma], most=True))
    show_bars("differences", bars)


if __name__ == "__main__":
    main()
