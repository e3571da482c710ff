"""How a framework holds a file: whether it has it mapped now, and so reads it later, or has read it."""

from __future__ import annotations

from pathlib import Path


def is_mapped(path: Path) -> bool:
    """By this process. The path may lead through links: a tag's, say."""
    real = str(path.resolve())
    return any(line.endswith(f" {real}") for line in Path("/proc/self/maps").read_text().splitlines())
