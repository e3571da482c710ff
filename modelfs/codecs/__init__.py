"""Decoded bytes ↔ stored bytes, lossless, one chunk at a time.

Rule: decoding allocates by the length that the caller expects, and every malformed input is CodecError.
"""

from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.difference import LEAST_GAIN, difference_named, encode_difference
from modelfs.codecs.registry import codec_named, encode_chunk

__all__ = ["LEAST_GAIN", "Codec", "CodecError", "codec_named", "difference_named", "encode_chunk", "encode_difference"]
