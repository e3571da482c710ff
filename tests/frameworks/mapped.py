"""How a framework holds a file: whether it has it mapped now, and so reads it later, or has read it."""

from __future__ import annotations

from pathlib import Path


def is_mapped(path: Path) -> bool:
    """By this process. The path may lead through links: a tag's, say.

    A file that became whole after it was mapped has another node by then, and the kernel calls the old one deleted.
    """
    real = str(path.resolve())
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(line.removesuffix(" (deleted)").endswith(f" {real}") for line in lines)
