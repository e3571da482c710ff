"""What a model file is and where its header and tensors lie: safetensors, GGUF, torch's zip, npy, npz.

Rule: found by content, never by name alone; a file that does not parse cleanly is one segment of unknown bytes,
so describing never fails for what is in a file, and the segments always cover it exactly once.
"""

from __future__ import annotations

from modelfs.formats import archive, gguf, npy
from modelfs.formats.archive import parse_archive
from modelfs.formats.format import Description, ReadAt, Segment, Tensor
from modelfs.formats.gguf import parse_gguf
from modelfs.formats.npy import parse_npy
from modelfs.formats.safetensors import parse_safetensors
from modelfs.formats.source import NotThisFormat, Source

__all__ = ["Description", "ReadAt", "Segment", "Tensor", "describe"]

_BY_MAGIC = ((gguf.MAGIC, parse_gguf), (archive.MAGIC, parse_archive), (npy.MAGIC, parse_npy))


def describe(read: ReadAt, size: int, path: str) -> Description:
    """The file of size bytes that read reads; format None and one segment where it is nothing known here.

    path: a hint that no format needs today: each shows in its first 9 bytes. Reads headers and directories only,
    at most 100 MB of them. Raises what read raises.
    """
    if not size:
        return Description(None, ())
    try:
        return _parse(Source(read, size))
    except NotThisFormat:
        return Description(None, (Segment(0, size),))


def _parse(source: Source) -> Description:
    magic = source.bytes_at(0, min(source.size, 9))
    for prefix, parse in _BY_MAGIC:
        if magic.startswith(prefix):
            return parse(source)
    if magic[8:] == b"{":
        return parse_safetensors(source)
    raise NotThisFormat("no known magic")
