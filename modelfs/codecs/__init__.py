"""Decoded bytes ↔ stored bytes, lossless, one chunk at a time.

Rule: decoding allocates by the length that the caller expects, and every malformed input is CodecError.
"""

from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.difference import DIFFERENCES, LEAST_GAIN, difference_named, encode_difference
from modelfs.codecs.registry import codec_named, encode_chunk

__all__ = ["LEAST_GAIN", "Codec", "CodecError", "check_codec", "codec_named", "difference_named", "encode_chunk",
           "encode_difference"]


def check_codec(name: str) -> None:
    """Raises Unsupported, naming it, for a codec, with a base or without, that this modelfs does not have."""
    if name not in DIFFERENCES:
        codec_named(name)
