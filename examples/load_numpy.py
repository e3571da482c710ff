"""Map a .npy file and read some of its rows: the rest of the file is never fetched.

    load_numpy.py /mnt/models/acme/vectors/latest/vectors.npy 0 1000000
"""

from __future__ import annotations

import sys

import numpy as np


def main(path: str, *rows: str) -> None:
    array = np.load(path, mmap_mode="r")
    print(f"{array.dtype} {list(array.shape)}, {array.nbytes / 1e6:.1f} MB, mapped")
    for row in map(int, rows or ("0", "-1")):
        print(f"row {row}: norm {np.linalg.norm(array[row]):.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
