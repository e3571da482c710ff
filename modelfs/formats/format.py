"""What modelfs knows of a model file: where its header and its tensors lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → the bytes there; fewer only at the file's end."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a file that is cut by itself.

    width: bytes of one element (1, 2, 4 or 8), 0 where it is not known.
    head: a header or directory that readers want before anything else.
    """

    offset: int
    length: int
    width: int = 0
    head: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """dtype as safetensors names it (BF16, F32, …) where it has a name there, else the format's own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Description:
    """format: safetensors, gguf, torch, npy, npz, or None for any other file.

    segments: cover the file, every byte exactly once, in order.
    tensors: in the order of their offsets; they may be fewer than there are (a format without names for them).
    """

    format: str | None
    segments: tuple[Segment, ...]
    tensors: tuple[Tensor, ...] = ()
