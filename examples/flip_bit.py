"""Damage a file as a bad disk would: one bit, at a third of it.

    flip_bit.py repository/packs/ab/ab…
"""

from __future__ import annotations

import os
import sys


def main(path: str) -> None:
    at = os.path.getsize(path) // 3
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    print(f"flipped bit 4 of byte {at}")


if __name__ == "__main__":
    main(*sys.argv[1:])
