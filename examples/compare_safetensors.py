"""Load every tensor of one safetensors file through safetensors, and compare it with another file's.

    compare_safetensors.py /mnt/models/acme/minilm/latest/model.safetensors original/model.safetensors
"""

from __future__ import annotations

import sys
import time

import numpy as np
from safetensors import safe_open


def main(mounted: str, original: str) -> None:
    began, loaded_bytes = time.monotonic(), 0
    # Read whole before it is mapped: an error in a read is an OSError, under a map it is a signal (SIGBUS).
    with open(mounted, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            loaded_bytes += len(chunk)
    with safe_open(mounted, "numpy") as there, safe_open(original, "numpy") as here:
        names = sorted(here.keys())
        assert sorted(there.keys()) == names, "the files hold different tensors"
        for name in names:
            ours, theirs = there.get_tensor(name), here.get_tensor(name)
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, f"{name} differs in form"
            assert np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)), f"{name} differs"
    print(f"{len(names)} tensors, {loaded_bytes / 1e6:.1f} MB, all equal, in {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
